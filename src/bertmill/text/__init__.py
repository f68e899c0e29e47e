"""Files to documents, documents to sentences, sentences to tokens."""
