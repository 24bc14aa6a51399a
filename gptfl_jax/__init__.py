"""GPT-FL in JAX: make labelled data, train on it, fine-tune by federated learning.

The library is pure: arrays in, arrays out, keys passed explicitly. The programs in
`generate/`, `train/` and `federated/` are built from it. Paper: "GPT-FL: Generative
Pre-trained Model-Assisted Federated Learning" (arXiv 2306.02210).
"""
