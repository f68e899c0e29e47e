"""Pictures and texts about a run."""
