"""generate.sounds with a tiny AudioLDM; test_sound_runs.py kills it."""

import json
import pathlib

import numpy as np
import pytest
import soundfile
from PIL import Image

from generate import prompts, samples, sounds
from gptfl_jax import artifacts
from gptfl_jax.errors import UserError
from gptfl_jax.generators.diffusion import solvers
from gptfl_jax.generators.diffusion.lowering import Lowered
from gptfl_jax.generators.sounds.audioldm import AudioLDM
from gptfl_jax.launch.config_files import read_config

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


@pytest.fixture
def make_config(sounds_config_file):
    return lambda arg="": read_config(f"{sounds_config_file}:{arg}")


def lines(workdir):
    return artifacts.read_manifest(workdir / "synthetic")


def test_clips_of_every_domain(make_config, tiny_sounds, tmp_path, capsys):
    config = make_config()
    prompts.run(config, tmp_path)
    sounds.run(config, tmp_path)
    out = capsys.readouterr().out
    assert "16 clips of 2 classes, 8 a class" in out
    assert "0.05 s, 2 steps, guidance 2.5; the model's licence: cc-by-nc-sa-4.0" in out
    made = lines(tmp_path)
    assert {line.licence for line in made} == {"cc-by-nc-sa-4.0"}
    assert {line.guidance for line in made} == {2.5}
    domains = ("in a studio", "in the field", "at home", "in an office")
    names = ("dog", "sea waves")
    drawn = {line.prompt for line in made}
    assert drawn <= {f"{name} {domain}" for name in names for domain in domains}
    assert all(any(each.endswith(domain) for each in drawn) for domain in domains)

    # As many as a batch, so that nothing is compiled again.
    made = made[:8]
    pipeline = AudioLDM.from_pretrained(tiny_sounds)
    waves = pipeline(
        [line.prompt for line in made],
        key=samples.keys(made),
        num_steps=2,
        duration_s=0.05,
    )
    for line, wave in zip(made, np.asarray(waves), strict=True):
        data, rate = soundfile.read(tmp_path / "synthetic" / line.file, dtype="int16")
        assert rate == 16000 and data.shape == (800,)
        assert np.abs(data - np.clip(wave, -1, 1 - 2**-15) * 2**15).max() <= 2
    with Image.open(tmp_path / "synthetic" / "preview.png") as preview:
        assert preview.size[0] > 2 * 128 and preview.size[1] >= 2 * 128

    sounds.run(make_config("samples=9"), tmp_path)
    assert len(lines(tmp_path)) == 18 and set(made) < set(lines(tmp_path))
    assert "; 16 are there already" in capsys.readouterr().out

    config.generate.duration_s = 0.1
    with pytest.raises(UserError, match="config.generate.duration_s = 0.05, now it is"):
        sounds.run(config, tmp_path)


def test_guidance_is_drawn_for_ucg(make_config, tmp_path):
    config = make_config("method=ucg")
    prompts.run(config, tmp_path)
    sounds.run(config, tmp_path)
    made = lines(tmp_path)
    assert {line.prompt for line in made} == {"dog", "sea waves"}
    assert {line.guidance for line in made} == {1.0, 2.0, 3.0, 4.0, 5.0}


def test_lines_of_earlier_versions_gain_the_licence(make_config, tmp_path):
    config = make_config("samples=4")
    prompts.run(config, tmp_path)
    sounds.run(config, tmp_path)
    made = lines(tmp_path)
    earlier = [line._replace(licence=None) for line in made]
    artifacts.write_manifest(tmp_path / "synthetic", earlier)
    assert "licence" not in (tmp_path / "synthetic" / "manifest.jsonl").read_text()
    sounds.run(config, tmp_path)
    assert lines(tmp_path) == made


def test_what_cannot_be_made_is_refused(make_config, tmp_path):
    config = make_config("samples=1")
    prompts.run(config, tmp_path)
    config.generate.model = "glyphs"
    with pytest.raises(UserError, match="StableDiffusionPipeline is no AudioLDM"):
        sounds.run(config, tmp_path)
    config = make_config("samples=1")
    config.generate.duration_s = 1e-4
    with pytest.raises(UserError, match="duration_s = 0.0001: takes 0.0025 to"):
        sounds.run(config, tmp_path)


def test_a_plan_counts_batches_and_steps(make_config, tmp_path, monkeypatch):
    asked = {}

    def lower(networks, duration_s, mesh, **options):
        asked.update(options, duration_s=duration_s)
        params = dict.fromkeys(("unet", "vae", "text_encoder", "vocoder"), ())
        return Lowered(params, {}, {"steps": (1e9, options["num_steps"])})

    monkeypatch.setattr(sounds, "lower", lower)
    plan = sounds.plan(make_config("samples=6"), tmp_path)
    assert isinstance(asked.pop("solver"), solvers.DDIM)
    assert not asked.pop("counted_only")
    assert asked == {"batch": 8, "num_steps": 2, "guided": True, "duration_s": 0.05}
    facts = dict(plan.facts)
    assert facts["clips"].startswith("12 of 2 classes")
    assert facts["model"].endswith("licence: cc-by-nc-sa-4.0")
    assert plan.work[0].times == 2 * 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "method, expected",
    [
        ("class_prompt", ["a sound of sea waves"]),
        ("ucg", ["sea waves"]),
        (
            "multi_domain",
            [
                "sea waves in a studio",
                "sea waves in the field",
                "sea waves at home",
                "sea waves in an office",
            ],
        ),
    ],
)
def test_prompts_of_esc50_are_the_originals(method, expected, tmp_path):
    config = read_config(f"{CONFIGS / 'esc50.py'}:prompts={method}")
    prompts.run(config, tmp_path)
    made = json.loads((tmp_path / "prompts.json").read_text())["prompts"]
    assert len(made) == 50 and made["sea_waves"] == expected
    assert config.generate.model == "cvssp/audioldm"
    assert (config.generate.num_steps, config.generate.guidance_scale) == (100, 2.5)
    assert config.generate.duration_s == 5.0


def test_prompts_name_the_classes_of_the_folder(tmp_path):
    """With `data.folder` they are those of its meta/esc50.csv."""
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text(
        "filename,fold,target,category,esc10,src_file,take\n"
        "a.wav,1,11,sea_waves,False,1,A\nb.wav,2,0,dog,True,2,A\n"
    )
    config = read_config("esc50")
    config.data.folder = str(tmp_path)
    prompts.run(config, tmp_path / "run")
    made = json.loads((tmp_path / "run" / "prompts.json").read_text())["prompts"]
    assert made == {
        "dog": ["a sound of dog"],
        "sea_waves": ["a sound of sea waves"],
    }
