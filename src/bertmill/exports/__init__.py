"""The encoder for other programs: folders that they open, each compared with the original."""
