import numpy as np
import pytest

from gptfl_jax.data import audio, sources
from gptfl_jax.data.sources import drumkits
from gptfl_jax.errors import UserError

from ..conftest import SETTINGS, SMALL, write

# As Hydrogen writes it, with what older versions and other kits have.
KIT = """<?xml version="1.0" encoding="UTF-8"?>
<drumkit_info xmlns="http://www.hydrogen-music.org/drumkit">
 <name>{name}</name>
 <info>&lt;!DOCTYPE HTML&gt;</info>
 <instrumentList>{instruments}</instrumentList>
</drumkit_info>
"""
LAYERS = "<layer><filename>{}</filename></layer>"


def instrument(name, *files):
    layers = "".join(map(LAYERS.format, files))
    return f"<instrument><id>0</id><name>{name}</name>{layers}</instrument>"


def write_kit(folder, instruments):
    """A kit of instruments and how many strokes of each there are."""
    text = ""
    for number, (name, count) in enumerate(instruments.items()):
        files = [f"{number}-{i}.wav" for i in range(count)]
        for i, file in enumerate(files):
            write(folder / file, seed=10 * number + i, rate=8000)
        text += instrument(name, *files)
    kit = KIT.format(name=folder.name, instruments=text)
    (folder / "drumkit.xml").write_text(kit)


@pytest.fixture
def kits(tmp_path):
    root = tmp_path / "drumkits"
    write_kit(root / "a", {"Kick": 1, "Snare Jazz": 2, "Open HH": 1, "Hand Clap": 1})
    write_kit(
        root / "b", {"Floor Tom": 1, "Crash Left": 1, "Ride 2": 1, "Ride Bell": 2}
    )
    write_kit(root / "c", {"Kick 1": 3, "Kick 2": 1, "Conga": 1})
    write_kit(root / "d", {"BassDrum": 1, "Tom Hi": 1, "Snare": 1})
    return tmp_path


def load(folder, **options):
    return sources.load("drumkits", str(folder), features=SMALL, **options)


def test_kits_are_clients(kits, capsys):
    source = load(kits, test_kits="d")
    train, test = source.train, source.test
    assert train.class_names == ("kick", "snare", "tom", "hi_hat", "crash", "ride")
    assert train.labels.tolist() == [0, 1, 1, 3, 2, 4, 5]
    assert train.clients.tolist() == [*"aaaabbb"]
    assert test.labels.tolist() == [0, 2, 1] and test.clients.tolist() == [*"ddd"]
    said = capsys.readouterr().out
    assert "left out kits of fewer than 3 classes: c\n" in said
    assert "10 strokes of 3 kits, 1 of them tested" in said
    # The second stroke of a's second instrument, its bands standardised together.
    wave = audio.read(kits / "drumkits" / "a" / "1-1.wav")
    settings = audio.FeatureSettings(**(drumkits.FEATURES | SMALL))
    expected = audio.compute(wave, settings)
    features, lengths = train.inputs
    assert settings == SETTINGS._replace(
        max_duration_s=1.0, least_duration_s=1.0, range_db=60.0, by_band=False
    )
    assert set(lengths) == {101}  # a second, with the silence behind
    np.testing.assert_array_equal(features[2], expected)


def test_which_kits_count(kits):
    # Every fourth; of these four the last.
    everyone = load(kits / "drumkits", least_classes=1)
    assert set(everyone.test.clients) == {"d"}
    assert set(everyone.train.clients) == {*"abc"}
    two = load(kits, kits=["a", "b"], test_kits=["b"])
    assert set(two.train.clients) == {"a"} and set(two.test.clients) == {"b"}
    with pytest.raises(UserError, match="test_kits: .* has no d; it has a, b"):
        load(kits, kits=["a", "b"], test_kits="d")
    with pytest.raises(UserError, match="options.kits: .* has no c; it has a, b, d"):
        load(kits, kits=["c"])


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("BassDrum", "kick"),
        ("c3 - bass drum 1", "kick"),
        ("Pearl Snare Rimshot", "snare"),
        ("tomhi2", "tom"),
        ('Hi-Hat Closed (Paiste Alpha Metal edge 14")', "hi_hat"),
        ("Side OHH", "hi_hat"),
        ("crash20inch--2", "crash"),
        ("Ride Bow (Custom, Zagrebin 22)", "ride"),
        ("Tambourine", None),
        ("Snare Roll", None),
        ("Paiste Bell", None),
        ("ride-crash20inch", None),
        ("", None),
    ],
)
def test_names_of_instruments(name, label):
    assert drumkits.class_of(name) == label


def read(folder, text):
    path = folder / "drumkit.xml"
    path.write_text(text)
    return drumkits.read_kit(path)


def test_a_kit_of_an_older_version(tmp_path):
    kit = "<drumkit_info><instrumentList><instrument><filename>k.flac</filename>"
    kit += "<name>Kick</name></instrument><instrument><name>17</name><filename/>"
    kit += "</instrument></instrumentList></drumkit_info>"
    assert read(tmp_path, kit) == [drumkits.Instrument("Kick", ("k.flac",))]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "it has a document type"),
        (KIT.format(name="k", instruments=instrument("a", "../b.wav")), "no file name"),
        (KIT.format(name="k", instruments="<instrument>"), "mismatched tag"),
        ("", "no element found"),
    ],
)
def test_what_is_no_kit(tmp_path, text, reason):
    with pytest.raises(UserError, match=f"drumkit.xml: is no drum kit .*{reason}"):
        read(tmp_path, text)


def test_a_recording_of_two_classes(tmp_path):
    both = instrument("Kick", "a.wav") + instrument("Tom", "a.wav")
    (tmp_path / "k").mkdir()
    read(tmp_path / "k", KIT.format(name="k", instruments=both))
    with pytest.raises(UserError, match="a.wav is of a kick and of a tom: take one"):
        load(tmp_path)
