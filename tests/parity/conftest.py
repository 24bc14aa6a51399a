"""Compares with live PyTorch; without it the folder is left out."""

import importlib.util

import jax
import pytest

if not all(map(importlib.util.find_spec, ("torch", "diffusers"))):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def quick_compilation():
    """Most of the time here goes into compiling; the networks are tiny."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
