"""Fields of `config.model`."""

from gptfl_jax import families
from gptfl_jax.configuration.fields import Field, choice

FIELDS: dict[str, Field] = choice(
    families.MODEL, "convnet", "the classifier: a file of gptfl_jax/models"
)
