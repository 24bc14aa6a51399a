"""Stage 3: federated fine-tuning and the report on it."""
