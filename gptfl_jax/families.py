"""The families of choices: which config field chooses from which folder.

Names of folders, not imports: to know what there is costs nothing until it is asked.
"""

from gptfl_jax.choices import Family, called

MODEL = Family(
    field="model.name",
    options="model.options",
    home="gptfl_jax.models",
    belongs=called("Model"),
    given=("num_classes", "parent", "name"),
    by_file=True,
)
