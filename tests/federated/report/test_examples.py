"""Synthetic beside real examples, seen and heard."""

import io
import re

import numpy as np
import soundfile

from federated import report
from federated.report import examples
from gptfl_jax import artifacts

from ...recordings import write_fsdd, write_synthetic
from ..conftest import make_config


def test_synthetic_beside_real(workdir, capsys, quick_pictures):
    from PIL import Image

    samples = []
    for label in range(10):
        for index in range(2):
            file = workdir / f"synthetic/{label}/{label}_{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            shade = np.full((32, 32, 3), 20 * label + index, np.uint8)
            Image.fromarray(shade).save(file)
            name = f"{label}/{file.name}"
            samples.append(artifacts.Sample(name, str(label), "a", index, None, "m"))
    artifacts.append_samples(workdir / "synthetic", samples)
    config = make_config()
    made, seen = examples.load(config, workdir, 2).sheets.values()
    config.report.private_examples = True
    asked_for = examples.load(config, workdir, 2).sheets.values()
    for first, second in zip((made, seen), asked_for, strict=False):
        np.testing.assert_array_equal(first, second)
    *_, real = asked_for
    assert made.shape == seen.shape == real.shape == (10 * 34 - 2, 2 * 34 - 2, 3)
    # Row 3, column 1: the second sample of class 3, also after conversion to 8x8 grey.
    assert (made[3 * 34 + 5, 34 + 5] == 61).all()
    assert (seen[3 * 34 + 5, 34 + 5] == 61).all()
    report.run(config, workdir)
    html = (workdir / "report.html").read_text()
    assert "real, of the training clients (8x8)" in html
    assert "every client holds and examples of the clients&#39; data.</p>" in html

    # Damaged samples are shown no more, and end nothing.
    for damaged in (workdir / "synthetic").glob("*/*_0.png"):
        damaged.write_bytes(damaged.read_bytes()[:50])
    assert len(examples.load(config, workdir, 2).sheets) == 2
    for damaged in (workdir / "synthetic").glob("*/*.png"):
        damaged.write_bytes(b"")
    report.run(make_config(), workdir)
    assert "report shows no synthetic examples: " in capsys.readouterr().out


def test_synthetic_beside_real_sounds(workdir, quick_pictures):
    write_fsdd(workdir / "data")
    write_synthetic(workdir, per_class=3)
    (workdir / "synthetic/0/0_00000.wav").write_bytes(b"no sound")
    config = make_config()
    config.data.source, config.data.folder = "fsdd", str(workdir / "data")
    config.data.options = {"test_speakers": "cleo"}
    found = examples.load(config, workdir, columns=3)
    assert len(found.sheets) == 1
    assert {clip.kind for clip in found.clips} == {"synthetic"}
    config.report.private_examples = True
    found = examples.load(config, workdir, columns=3)
    made, real = found.sheets.values()
    assert made.shape == real.shape == (10 * 98 - 2, 3 * 98 - 2, 3)
    # To 0.14 s, that of the longest clip: 0.1 s of anna's end at 5/7 of the width.
    drawn = (real[:32, :96] != 255).any(-1).any(0)
    assert drawn[:68].all() and not drawn[70:].any()
    # What cannot be read is left out.
    assert (made[:96, 200:292] == 255).all() and (made[:96, :90] != 255).any()
    assert [(clip.label, clip.kind) for clip in found.clips] == [
        (digit, kind) for digit in "024579" for kind in ("synthetic", "real")
    ]
    wave, rate = soundfile.read(io.BytesIO(found.clips[3].wav), dtype="int16")
    recorded, _ = soundfile.read(
        workdir / "data/recordings/2_anna_0.wav", dtype="int16"
    )
    assert rate == 8000 and np.abs(wave - recorded.astype(int)).max() <= 1

    report.run(config, workdir)
    page = (workdir / "report.html").read_text()
    assert page.count("<audio controls") == 12
    assert "To hear: 6 synthetic clips and 6 real clips, of 1.5 s at most." in page
    sources_named = re.findall(r'src="([^"]{5})', page)
    assert set(sources_named) == {"data:"}
