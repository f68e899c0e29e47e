"""The loop, and what it leaves behind: checkpoints, metrics, a model folder."""
