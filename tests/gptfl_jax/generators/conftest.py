"""Makes compilation quick for the tests here."""

import jax
import pytest

from gptfl_jax import convolution


@pytest.fixture(autouse=True)
def quick_compilation():
    """Most of the time here goes into compiling; the networks are tiny."""
    jax.config.update("jax_disable_most_optimizations", True)
    with convolution.form("lax"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)
