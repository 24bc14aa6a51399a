"""Fields of `config.report`."""

from gptfl_jax import rules
from gptfl_jax.configuration.fields import Field

FIELDS: dict[str, Field] = {
    "runs": Field(
        (),
        rules.NAMES,
        "names of the runs to compare; empty: all there are",
        common=True,
    ),
    "targets": Field(
        (0.9, 0.95),
        rules.tuple_of(rules.number(above=0, most=1), "numbers > 0 and <= 1"),
        "accuracies for which rounds and bytes are counted",
        common=True,
    ),
    "figure_width": Field(
        5.5,
        rules.number(least=1, most=20),
        "inches of a figure for a paper: 5.5 a page of text, 3.25 a column",
    ),
    "private_examples": Field(
        False,
        rules.FLAG,
        "whether the page shows examples of the clients' data beside synthetic ones",
    ),
}
