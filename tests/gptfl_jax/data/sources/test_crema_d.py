import numpy as np
import pytest

from gptfl_jax.data import sources
from gptfl_jax.errors import UserError

from ..conftest import SMALL, check_rows, features_of, write


def test_crema_d(tmp_path):
    # Folds of 1001-1019, 1020-1037, ..., 1074-1091.
    names = (
        *("1001_DFA_ANG_XX", "1019_IEO_SAD_HI", "1020_IEO_NEU_XX", "1020_ITH_FEA_XX"),
        *("1076_MTI_SAD_XX", "1091_WSI_HAP_XX"),
    )
    files = {name: tmp_path / "AudioWAV" / f"{name}.wav" for name in names}
    for seed, file in enumerate(files.values()):
        write(file, seed)
    files["1076_MTI_SAD_XX"].write_bytes(b"")  # as it is in the release
    source = sources.load("crema_d", str(tmp_path), features=SMALL)
    check_rows(source.test, [files[name] for name in names[:2]])
    check_rows(source.train, [files[names[2]], files[names[5]]])
    assert source.test.labels.tolist() == [3, 2]
    assert source.train.labels.tolist() == [0, 1]
    assert source.train.clients.tolist() == ["1020", "1091"]
    assert source.train.class_names == ("neutral", "happy", "sad", "anger")

    last = sources.load(
        "crema_d",
        str(tmp_path),
        features=SMALL,
        test_fold=5,
        emotions=["fear", "happy", "sad"],
    )
    assert last.test.labels.tolist() == [1] and last.train.labels.tolist() == [2, 0]

    table = '"","FileName","VoiceVote","MultiModalVote","MultiModalLevel"\n'
    votes = ("A", "N", "N", "S", "S", "A:H")
    for index, (name, vote) in enumerate(zip(names, votes, strict=True)):
        table += f'"{index}","{name}","S","{vote}","50"\n'
    (tmp_path / "processedResults").mkdir()
    (tmp_path / "processedResults" / "summaryTable.csv").write_text(table)
    voted = sources.load("crema_d", str(tmp_path), features=SMALL, labels="voted")
    assert voted.test.labels.tolist() == [3, 0]
    check_rows(voted.train, [files[name] for name in names[2:4]])
    assert voted.train.labels.tolist() == [0, 2]
    with pytest.raises(UserError, match="has no joy; it has anger, disgust"):
        sources.load("crema_d", str(tmp_path), emotions=("joy",))
    with pytest.raises(UserError, match="labels = 'felt': takes one of acted, voted"):
        sources.load("crema_d", str(tmp_path), labels="felt")
    with pytest.raises(UserError, match="test folds are of 1 to 5"):
        sources.load("crema_d", str(tmp_path), test_fold=0)


def test_the_actors_that_the_original_finds(tmp_path):
    # Of folds of 1000-1018, 1019-1036, ..., 1073-1090, those from 1010 on.
    actors = (1001, 1009, 1010, 1018, 1019, 1036, 1090, 1091)
    for actor in actors:
        write(tmp_path / "AudioWAV" / f"{actor}_DFA_ANG_XX.wav", actor)

    def clients(test_fold):
        options = {"actors": "original", "test_fold": test_fold, "features": SMALL}
        source = sources.load("crema_d", str(tmp_path), **options)
        return source.test.clients.tolist(), source.train.clients.tolist()

    assert clients(1) == (["1010", "1018"], ["1019", "1036", "1090"])
    assert clients(2) == (["1019", "1036"], ["1010", "1018", "1090"])
    assert clients(5) == (["1090"], ["1010", "1018", "1019", "1036"])


def test_standardised_over_the_clips_of_an_actor(tmp_path):
    lengths = {"1001_DFA_ANG": 1600, "1001_DFA_SAD": 3200, "1060_DFA_HAP": 1600}
    lengths["1060_IEO_HAP"], lengths["1070_DFA_NEU"] = 2400, 1600
    waves = {}
    for seed, (name, samples) in enumerate(lengths.items()):
        path = tmp_path / "AudioWAV" / f"{name}_XX.wav"
        write(path, seed, samples)
        waves[name] = features_of(path, standardise=False).astype(np.float64)
    source = sources.load(
        "crema_d", str(tmp_path), features=SMALL, standardise="speaker"
    )
    for part, groups in (
        (source.test, [["1001_DFA_ANG", "1001_DFA_SAD"]]),
        (source.train, [["1060_DFA_HAP", "1060_IEO_HAP"], ["1070_DFA_NEU"]]),
    ):
        rows = zip(*part.inputs, strict=True)
        for group in groups:
            frames = np.concatenate([waves[name] for name in group])
            for name in group:
                row, length = next(rows)
                expected = (waves[name] - frames.mean(0)) / (frames.std(0) + 1e-5)
                np.testing.assert_allclose(row[:length], expected, atol=1e-5)
                assert len(expected) == length and not row[length:].any()
        assert next(rows, None) is None
    assert source.sounds.settings.standardise  # of clips that have no actor
