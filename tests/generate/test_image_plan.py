"""What --dry_run says of stage 1b."""

import pytest

from generate import images
from gptfl_jax import configuration
from gptfl_jax.generators.pictures import sampling


def test_a_plan_counts_batches_and_steps(tmp_path, monkeypatch):
    asked = {}

    def lower(networks, shape, mesh, **options):
        asked.update(options, shape=shape)
        params = dict.fromkeys(("unet", "vae", "text_encoder"), ())
        return sampling.Lowered(params, {}, {"steps": (1e9, options["num_steps"])})

    monkeypatch.setattr(sampling, "lower", lower)
    config = configuration.default_config("data", "prompts", "generate")
    config.generate.update({"batch_size": 64, "num_steps": 7, "guidance_scale": 1.0})
    config.generate.samples_per_class = "2x"
    plan = images.plan(config, tmp_path)
    assert asked["batch"] == 64 and not asked["guided"]
    assert asked["shape"] == (8, 8, 4)
    # 1,415 real digits; batches of 64.
    assert dict(plan.facts)["pictures"].startswith("2,830 of 10 classes")
    assert plan.work[0].times == 45 * 7
    config.prompts.method = "ucg"  # draws the guidance
    images.plan(config, tmp_path)
    assert asked["guided"]
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_table_of_the_shipped_generator(tmp_path, capsys):
    config = configuration.default_config("data", "prompts", "generate")
    images.dry_run(config, tmp_path)
    said = capsys.readouterr().out
    assert "UNet 1.67 M" in said and "It fits" in said
    assert max(map(len, said.splitlines())) <= 80
