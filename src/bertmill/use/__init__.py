"""The encoder in use."""
