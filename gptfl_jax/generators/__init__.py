"""Generators of synthetic data, written in Flax after released PyTorch models."""
