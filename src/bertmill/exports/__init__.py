"""The encoder for other programs: folders that they open."""
