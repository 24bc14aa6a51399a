"""Files of released models: found, read without PyTorch, and written."""
