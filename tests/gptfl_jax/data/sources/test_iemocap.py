import pytest

from gptfl_jax.data import sources
from gptfl_jax.errors import UserError

from ..conftest import SMALL, check_rows, write

TURNS = {
    "Ses01F_impro01": {"F000": "neu", "M000": "ang", "F001": "xxx", "M001": "exc"},
    "Ses02F_impro03": {"M000": "hap", "F000": "sad", "F001": "fru"},
    "Ses02M_script01_1b": {"FXX0": "ang"},
    "Ses05M_impro02": {"F000": "exc"},
}


@pytest.fixture
def files(tmp_path):
    """The recordings by turn, each of another sound, and the tables that rate them."""
    root = tmp_path / "IEMOCAP_full_release"
    found = {}
    for dialog, turns in TURNS.items():
        session = root / f"Session{dialog[4]}"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for turn, code in turns.items():
            name = f"{dialog}_{turn}"
            lines += [
                f"[6.2901 - 8.2357]\t{name}\t{code}\t[2.5000, 2.5000, 2.5000]",
                "C-E2:\tNeutral;\t()",
                "A-F1:\tval 3; act 2; dom  2;\t()",
            ]
            found[name] = session / "sentences" / "wav" / dialog / f"{name}.wav"
            write(found[name], len(found))
        table = session / "dialog" / "EmoEvaluation" / f"{dialog}.txt"
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text("\n".join(lines) + "\n")
        table.with_name(f"._{dialog}.txt").write_bytes(b"\0what a Mac leaves\xff")
    return found


def test_iemocap(files, tmp_path):
    source = sources.load("iemocap", str(tmp_path), features=SMALL)
    test = ("Ses01F_impro01_F000", "Ses01F_impro01_M000", "Ses01F_impro01_M001")
    check_rows(source.test, [files[name] for name in test])
    assert source.test.labels.tolist() == [0, 3, 1]
    assert source.test.clients.tolist() == ["Ses01F", "Ses01M", "Ses01M"]
    train = ("Ses02F_impro03_M000", "Ses02F_impro03_F000", "Ses05M_impro02_F000")
    check_rows(source.train, [files[name] for name in train])
    assert source.train.labels.tolist() == [1, 2, 1]
    assert source.train.clients.tolist() == ["Ses02M", "Ses02F", "Ses05F"]
    assert source.train.class_names == ("neutral", "happy", "sad", "anger")


def test_scripts_and_other_emotions(files, tmp_path):
    options = {"test_session": 2, "excited_is_happy": False, "dialogs": "all"}
    emotions = ("anger", "frustrated", "excited")
    source = sources.load(
        "iemocap", str(tmp_path), features=SMALL, emotions=emotions, **options
    )
    assert source.test.labels.tolist() == [1, 0]
    assert source.test.clients.tolist() == ["Ses02F", "Ses02F"]
    assert source.train.labels.tolist() == [0, 2, 2]
    with pytest.raises(UserError, match="the training set is empty"):
        sources.load("iemocap", str(tmp_path), test_session=2, dialogs="scripted")


def test_what_is_wrong_is_named(files, tmp_path):
    with pytest.raises(UserError, match="has no joy; it has anger, disgust"):
        sources.load("iemocap", str(tmp_path), emotions=("joy",))
    with pytest.raises(UserError, match="test folds are of 1 to 5: "):
        sources.load("iemocap", str(tmp_path), test_session=6)
    with pytest.raises(UserError, match="not IEMOCAP; get it from https://sail.usc"):
        sources.load("iemocap", str(tmp_path / "elsewhere"))
    (table,) = tmp_path.rglob("Ses05M_impro02.txt")
    table.write_text(table.read_text().replace("\texc\t", " exc "))
    with pytest.raises(UserError, match="impro02.txt: line 3 is no turn with an emot"):
        sources.load("iemocap", str(tmp_path))
