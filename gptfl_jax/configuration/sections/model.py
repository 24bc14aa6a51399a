"""Fields of `config.model`."""

from typing import Any

from ml_collections import ConfigDict

from gptfl_jax import families, rules
from gptfl_jax.configuration.fields import Field, choice

FIELDS: dict[str, Field] = {
    **choice(
        families.MODEL,
        "convnet",
        "the classifier: a file of gptfl_jax/models",
        common=True,
    ),
    "weights": Field(
        "",
        rules.TEXT,
        "released weights that stage 2 starts from, and stage 3 with "
        "federated.init=weights: a file (.pth, .safetensors), its address, one in a "
        "Hugging Face repository (owner/name:file), or imagenet for torchvision's; "
        "empty: none",
        common=True,
    ),
}

TRAINABLE = Field(
    "all",
    rules.one_of("all", "head"),
    "which weights are trained: all, or head for the last layer alone, on features "
    "that are as they were; then nothing else is sent",
)
"""Of the stages that train."""


def model_identity(config: ConfigDict) -> dict[str, Any]:
    """What of `config.model` a run belongs to: not where weights lie."""
    model = config.model.to_dict()
    del model["weights"]
    return model
