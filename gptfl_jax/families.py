"""The families of choices: which config field chooses from which folder.

Names of folders, not imports: to know what there is costs nothing until it is asked.
"""

from typing import Any

from gptfl_jax.choices import Family, called, returns, takes_first

MODEL = Family(
    field="model.name",
    options="model.options",
    home="gptfl_jax.models",
    belongs=called("Model"),
    given=("num_classes", "parent", "name"),
    by_file=True,
)


def _is_source(thing: Any) -> bool:
    # `load`, which finds them, returns one as well.
    return returns("Source")(thing) and thing.__module__ != "gptfl_jax.data.sources"


TRACKER = Family(
    field="tracker",
    options="tracker_options",
    home="gptfl_jax.trackers",
    belongs=returns("Tracker"),
    given=("run",),
)
PROMPTS = Family(
    field="prompts.method",
    options="prompts.method_options",
    home="gptfl_jax.prompting",
    belongs=takes_first("request"),
    given=("request",),
)
SOURCE = Family(
    field="data.source",
    options="data.options",
    home="gptfl_jax.data.sources",
    belongs=_is_source,
    given=("folder", "image_size", "channels"),
    # Prompts need the class names of a data set and not its examples.
    names_alone="gptfl_jax.labels:known_data_sets",
)

ALGORITHM = Family(
    field="federated.algorithm",
    options="federated.algorithm_options",
    home="gptfl_jax.fl.algorithms",
    belongs=takes_first("learner", "local"),
    given=("learner", "local", "represent"),
)
AGGREGATION = Family(
    field="federated.aggregation",
    options="federated.aggregation_options",
    home="gptfl_jax.fl.aggregation",
    belongs=returns("Aggregation"),
    given=("weight",),
)
SAMPLING = Family(
    field="federated.sampling",
    options="federated.sampling_options",
    home="gptfl_jax.fl.samplers",
    belongs=returns("Sampler"),
    given=("num_clients", "offsets", "cohort_size"),
)
PARTITION = Family(
    field="federated.partition",
    options="federated.partition_options",
    home="gptfl_jax.data.partition",
    belongs=lambda function: any(
        takes_first(name)(function) for name in ("labels", "num_examples", "clients")
    ),
    given=("labels", "num_examples", "clients", "num_clients", "seed"),
)
