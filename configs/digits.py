"""scikit-learn's 1,797 handwritten digits: the whole of GPT-FL in a few minutes.

    python -m generate.prompts   --config=configs/digits.py --workdir=runs/digits
    python -m generate.images    --config=configs/digits.py --workdir=runs/digits
    python -m train.downstream   --config=configs/digits.py --workdir=runs/digits
    python -m federated.compare  --config=configs/digits.py --workdir=runs/digits
    python -m federated.report   --config=configs/digits.py --workdir=runs/digits

`make demo` does the same. For one federation in place of the comparison:

    python -m federated.simulate \
        --config=configs/digits.py:algorithm=fedopt,init=synthetic,alpha=0.5 \
        --workdir=runs/digits

The generator is the one shipped in gptfl_jax/assets/glyphs; it has seen fonts and drawn
pen strokes, and no digit of any data set. The private data are the digits of the first
11 writing runs; the test set are those of the last 3, whose hands no client has.
Clients hold few labels each: Dirichlet(0.1).

Hyperparameters were chosen on the first 11 runs alone, `:tune=True`: 8 runs to train
on, 3 to choose by. docs/digits.md has the grids.
"""

from ml_collections import ConfigDict

from gptfl_jax import configuration

ARGUMENTS = {
    "seed": "seed",
    "samples": "generate.samples_per_class",
    "epochs": "train.epochs",
    **{
        name: f"federated.{name}"
        for name in (
            *("algorithm", "init", "rounds", "cohort_size", "partition"),
            *("num_clients", "alpha", "local_epochs", "client_learning_rate"),
        )
    },
}


def get_config(arg: str = "") -> ConfigDict:
    """The config; `arg` sets the fields of `ARGUMENTS`, or tune=True."""
    config = configuration.default_config(
        *("data", "model", "prompts", "generate", "train"),
        *("federated", "compare", "report"),
    )
    return configuration.apply_arguments(config, arg, ARGUMENTS)
