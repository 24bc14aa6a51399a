import jax
import pytest


@pytest.fixture(autouse=True)
def x64():
    """Everything here is float64 unless a test is about another type."""
    with jax.enable_x64(True):
        yield
