import pytest

from gptfl_jax.data import sources
from gptfl_jax.errors import UserError

from ..conftest import SMALL, check_rows, write


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
