"""The shipped digit generator, distilled to 4 steps without guidance.

    python -m train.generator --config=configs/few_steps.py --workdir=runs/few-steps

The workdir gets LoRA weights (`lora/`), with which the model `glyphs` evaluates its net
4 times a picture: 4 steps, guidance 1. A Stable Diffusion of yours is distilled for the
prompts of your classes by

    --config.few_steps.model=FOLDER --config.few_steps.prompts=WORKDIR/prompts.json
"""

from ml_collections import ConfigDict

from gptfl_jax import configuration


def get_config(arg: str = "") -> ConfigDict:
    """The settings of the shipped weights are the defaults of the section."""
    config = configuration.default_config("few_steps")
    return configuration.apply_arguments(
        config,
        arg,
        {
            "steps": "few_steps.steps",
            "rank": "few_steps.rank",
            "student_steps": "few_steps.student_steps",
            "trajectories": "few_steps.trajectories",
            "batch": "few_steps.batch_size",
        },
    )
