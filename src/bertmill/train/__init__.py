"""The pretraining loop and what it writes: checkpoints, metrics, a model folder."""
