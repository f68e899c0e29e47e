"""How good a pretrained model is, measured on text that it has never seen."""
