"""Text to token store, store to pairs, pairs to masked batches. No torch here."""
