"""Distillation of a diffusion model to few steps without guidance."""
