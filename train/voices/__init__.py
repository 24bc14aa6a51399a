"""Training of the small voices, on words of free speech synthesizers."""
