"""Fields of `config.data`."""

from typing import Any

from ml_collections import ConfigDict

from gptfl_jax import families, rules
from gptfl_jax.configuration.fields import Field, choice

FIELDS: dict[str, Field] = {
    **choice(
        families.SOURCE,
        "sklearn_digits",
        "the real data: a function of gptfl_jax/data/sources",
        common=True,
    ),
    "folder": Field(
        "", rules.TEXT, "folder of the data set, where it needs one", common=True
    ),
    "image_size": Field(
        0,
        rules.whole(0),
        "side of an image in pixels; 0: the source's own",
        common=True,
    ),
    "channels": Field(
        0,
        rules.Rule(
            "0, 1 or 3", lambda value: rules.is_whole(value) and value in (0, 1, 3)
        ),
        "colour channels; 0: the source's own",
    ),
}


# Options of sources that say where files lie or come from, not what is in them.
_OF_PLACES = ("cache", "download")


def data_identity(config: ConfigDict, fingerprint: str) -> dict[str, Any]:
    """What of `config.data` a run belongs to: all but places, and what lies there."""
    data = config.data.to_dict()
    del data["folder"]
    data["options"] = {k: v for k, v in data["options"].items() if k not in _OF_PLACES}
    return {**data, "content": fingerprint}
