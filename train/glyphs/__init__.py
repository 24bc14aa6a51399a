"""Training of the small text-to-image generator of digits: fonts and pen paths."""
