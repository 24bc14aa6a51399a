"""Fields of `config.few_steps`."""

from gptfl_jax import rules
from gptfl_jax.configuration import generator_fields
from gptfl_jax.configuration.fields import Field

FIELDS: dict[str, Field] = {
    "model": Field(
        "glyphs",
        rules.NAME,
        "the teacher, a Stable Diffusion shipped here, a diffusers folder or a hub id",
    ),
    "prompts": Field(
        "",
        rules.TEXT,
        "a prompts.json of generate.prompts, whose prompts it is distilled for; empty: "
        "the sentences that describe digits, of the model glyphs",
    ),
    "steps": Field(4, rules.whole(1), "of the student"),
    "steps_of_teacher": Field(16, rules.whole(1), "a multiple of them"),
    "guidance_scale": Field(
        2.0, rules.number(least=0), "of the teacher; the student needs none"
    ),
    "trajectories": Field(
        2048, rules.whole(1), "samples of the teacher that the student learns from"
    ),
    "rank": Field(
        16, rules.whole(1), "of the LoRA weights that make the teacher the student"
    ),
    "student_steps": Field(500, rules.whole(1), "training steps"),
    "student_learning_rate": Field(
        2e-3, rules.number(above=0), "peak learning rate of the LoRA weights"
    ),
    **generator_fields.every_phase(
        "samples", batch_size=64, ema_decay=0.995, checkpoint_every=50, log_every=10
    ),
    "test_samples": Field(
        5000,
        rules.whole(0),
        "samples of digits for the quality measure at the end; 0: none",
    ),
}
