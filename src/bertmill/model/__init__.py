"""The network: packed encoder, two heads, two losses, and model folders."""
