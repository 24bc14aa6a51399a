"""Federated learning: local training, aggregation, server optimizers, diagnostics."""
