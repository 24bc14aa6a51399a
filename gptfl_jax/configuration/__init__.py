"""What a config may hold, and the checks that run before any work starts.

`sections/` has a file for each section with its fields: default, what it takes, help
text. Defaults, validation, command-line parsing and `--help` are all read from there. A
field that chooses an algorithm, a model, a data set... takes the names in that one's
folder, and its options are those of the chosen one's signature (`gptfl_jax.choices`). A
config file builds on it:

    def get_config(arg=""):
        config = configuration.default_config("data", "model", "train")
        config.train.epochs = 50
        return configuration.apply_arguments(config, arg, {"epochs": "train.epochs"})
"""

from gptfl_jax.configuration.checks import validate
from gptfl_jax.configuration.fields import Field
from gptfl_jax.configuration.renamed import in_todays_words, no_such_field
from gptfl_jax.configuration.schema import SCHEMA, fields
from gptfl_jax.configuration.sections.augmentation import AUGMENTATION, without_unset
from gptfl_jax.configuration.sections.compare import methods_of
from gptfl_jax.configuration.sections.data import data_identity
from gptfl_jax.configuration.sections.federated import check_cohort, sampling_repeats
from gptfl_jax.configuration.sections.model import model_identity
from gptfl_jax.configuration.text import apply_arguments, set_text, set_texts
from gptfl_jax.configuration.values import default_config, get, put

__all__ = [
    "AUGMENTATION",
    "SCHEMA",
    "Field",
    "apply_arguments",
    "check_cohort",
    "data_identity",
    "default_config",
    "fields",
    "get",
    "in_todays_words",
    "methods_of",
    "model_identity",
    "no_such_field",
    "put",
    "sampling_repeats",
    "set_text",
    "set_texts",
    "validate",
    "without_unset",
]
