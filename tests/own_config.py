"""A config file of one's own, with a name for a field, that several tests read."""

CONFIG = """\
from gptfl_jax import configuration


def get_config(arg=""):
    config = configuration.default_config("data", "federated")
    config.federated.rounds = 7
    aliases = {"rate": "federated.client_learning_rate"}
    return configuration.apply_arguments(config, arg, aliases)
"""
