import json

import jax
import numpy as np
import PIL.Image
import pytest

import gptfl_jax as gf
from federated import predict
from gptfl_jax import description, exports
from gptfl_jax.classifier import Classifier
from gptfl_jax.data import audio
from gptfl_jax.errors import UserError


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An exported classifier of digits, and a folder of 5 pictures."""
    root = tmp_path_factory.mktemp("predict")
    digits = gf.load("sklearn_digits")
    about = description.describe("logistic_regression", {}, digits)
    variables = description.make_learner(about).init(jax.random.key(0))
    variables = jax.tree.map(
        lambda leaf: np.random.default_rng(0).normal(size=leaf.shape).astype("f4"),
        variables,
    )
    exports.write(root / "out", about, variables)
    (root / "pictures" / "more").mkdir(parents=True)
    for number in range(5):
        folder = root / "pictures" / ("more" if number > 2 else "")
        image = PIL.Image.fromarray(digits.test.inputs[number][..., 0])
        image.save(folder / f"{number}.png")
    (root / "pictures" / ".hidden.png").write_bytes(b"")
    (root / "pictures" / "notes.txt").write_text("no picture")
    return root, digits.test.inputs[:5]


def test_lines_of_json(exported, capsys):
    root, inputs = exported
    predict.run(
        str(root / "pictures"),
        *(str(root / "pictures" / "0.png"),),
        workdir=str(root / "out"),
        json=True,
        batch_size=2,
        top=2,
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = gf.load_classifier(root / "out").probabilities(inputs)
    files = [*(f"{n}.png" for n in range(3)), "more/3.png", "more/4.png", "0.png"]
    assert [line["file"] for line in lines] == [
        str(root / "pictures" / file) for file in files
    ]
    for line, row in zip(lines, expected[[0, 1, 2, 3, 4, 0]], strict=True):
        best = np.argsort(-row)[:2]
        assert [each["class"] for each in line["top"]] == [str(i) for i in best]
        shares = [each["probability"] for each in line["top"]]
        np.testing.assert_allclose(shares, row[best], atol=1e-6)


def test_a_table_without_what_cannot_be_read(exported, tmp_path, capsys):
    root, inputs = exported
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "none").mkdir()
    good = str(root / "pictures" / "1.png")
    paths = ("missing.png", good, str(tmp_path / "broken.png"), str(tmp_path / "none"))
    with pytest.raises(SystemExit) as left:
        predict.run(*paths, workdir=str(root / "out"))
    assert left.value.code == 1
    out, err = capsys.readouterr()
    head, rule, line = out.splitlines()
    assert head.split() == ["file", "1.", "class", "2.", "class", "3.", "class"]
    assert set(rule) == {"-"}
    row = gf.load_classifier(root / "out").probabilities(inputs[1:2])[0]
    best = np.argsort(-row)[:3]
    said = [word for i in best for word in (str(i), f"{100 * row[i]:.1f}", "%")]
    assert line.split() == [good, *said]
    assert "missing.png: cannot be read" in err
    assert "broken.png: cannot be decoded" in err
    assert "none: holds no file that ends in one of ['.bmp'" in err
    assert "3 of 4 could not be read" in err


def test_nothing_but_broken_files(exported, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit):
        predict.run(str(tmp_path), workdir=str(exported[0] / "out"), json=True)
    assert capsys.readouterr().out == ""


def test_what_is_refused(exported):
    workdir = str(exported[0] / "out")
    with pytest.raises(UserError, match="name the pictures or recordings"):
        predict.run(workdir=workdir)
    with pytest.raises(UserError, match="--top=0: takes a whole number from 1"):
        predict.run("a.png", workdir=workdir, top=0)


def test_sounds_of_several_lengths(tmp_path):
    settings = audio.FeatureSettings(
        sample_rate_hz=8000, num_mels=8, fft_size=256, hop=80
    )
    example = (
        jax.ShapeDtypeStruct((40, 8), np.float32),
        jax.ShapeDtypeStruct((), np.int32),
    )
    about = description.Description(
        *("audio_cnn", {"widths": (4,)}, ("low", "high"), example),
        sounds=settings,
    )
    learner = description.make_learner(about)
    classifier = Classifier(learner, learner.init(jax.random.key(0)), about)
    paths = []
    for number, seconds in enumerate((0.2, 0.7, 0.45)):
        time_s = np.arange(int(8000 * seconds)) / 8000
        wave = np.sin(time_s * 2 * np.pi * 200 * (number + 1)).astype(np.float32)
        paths.append(tmp_path / f"{number}.wav")
        paths[-1].write_bytes(audio.encode_wav(wave, 8000))
    cut = paths[0].read_bytes()
    paths.insert(1, tmp_path / "cut.wav")
    paths[1].write_bytes(cut[:-100])
    found = list(predict.predictions(classifier, paths, batch_size=4))
    assert "truncated" in found[1].error
    for each in (found[0], *found[2:]):
        alone = classifier.probabilities(each.path)[0]
        np.testing.assert_allclose(each.probabilities, alone, atol=1e-5)
