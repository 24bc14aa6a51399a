"""Data sets as arrays, and their partition over clients."""
