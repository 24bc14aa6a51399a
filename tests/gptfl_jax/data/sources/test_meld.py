import pytest

from gptfl_jax.data import sources
from gptfl_jax.errors import UserError

from ..conftest import SMALL, check_rows, write

FOLDERS = {
    "train": "train_splits",
    "dev": "dev_splits_complete",
    "test": "output_repeated_splits_test",
}
ROWS = {
    "train": (
        ("Joey", "joy", "positive", 0, 0),
        ("Ross", "anger", "negative", 0, 1),
        ("Joey", "neutral", "neutral", 0, 2),
        ("Man", "fear", "negative", 1, 0),
        ("Joey", "surprise", "positive", 1, 1),  # missing
        ("Joey", "sadness", "negative", 2, 0),  # 0.09 s
        ("Man", "joy", "positive", 2, 1),
    ),
    "dev": (("Joey", "disgust", "negative", 0, 0),),
    "test": (
        ("Rachel", "surprise", "negative", 3, 0),
        ("Joey", "neutral", "neutral", 3, 1),
        ("Rachel", "joy", "positive", 3, 2),
    ),
}


@pytest.fixture
def clips(tmp_path):
    """By part and numbers, in the layout of the archives; lines have their \\x85."""
    found = {}
    for part, rows in ROWS.items():
        lines = ["Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID"]
        for row in rows:
            lines.append(
                f'{len(lines)},"Oh\x85 ""hi"",\nyou",' + ",".join(map(str, row))
            )
            *_, dialogue, utterance = row
            name = f"dia{dialogue}_utt{utterance}.wav"
            path = tmp_path / FOLDERS[part] / "waves" / name
            if row[1:3] != ("surprise", "positive"):
                samples = 1440 if row[1] == "sadness" else 1600
                write(path, len(found), samples=samples)
            found[part, dialogue, utterance] = path
        # Of the archives, that of the training set alone has its table inside.
        root = tmp_path if part == "train" else tmp_path / "MELD.Raw"
        root.mkdir(exist_ok=True)
        (root / f"{part}_sent_emo.csv").write_text(
            "\r\n".join(lines), encoding="utf-8", newline=""
        )
    return found


def test_meld(clips, tmp_path, capsys):
    source = sources.load("meld", str(tmp_path), features=SMALL, min_clips=2)
    check_rows(source.train, [clips["train", 0, 0], clips["train", 0, 2]])
    check_rows(source.test, [clips["test", 3, 0], clips["test", 3, 2]])
    assert source.train.class_names == ("neutral", "positive", "negative")
    assert source.train.labels.tolist() == [1, 0]
    assert source.train.clients.tolist() == ["Joey", "Joey"]
    assert source.test.labels.tolist() == [2, 1]
    assert capsys.readouterr().out == (
        "MELD: left out 1 clips that its tables name and are not there\n"
        "left out 1 clips shorter than 0.1 s, kept 4\n"
    )


def test_everyone_in_emotions(clips, tmp_path):
    options = {"task": "emotion", "test_list": "dev", "min_duration_s": 0}
    source = sources.load(
        *("meld", str(tmp_path)),
        **{"features": SMALL, "min_clips": 1, "everyone": True, **options},
    )
    names = source.train.class_names
    told = [names[label] for label in source.train.labels]
    assert told == ["joy", "anger", "neutral", "fear", "sadness", "joy"]
    assert source.train.clients.tolist() == ["Joey", "Ross", "Joey", "Man"] + [
        *("Joey", "Man")
    ]
    check_rows(source.test, [clips["dev", 0, 0]])
    assert names[source.test.labels[0]] == "disgust"


def test_what_is_missing_is_named(clips, tmp_path):
    with pytest.raises(UserError, match="the training set is empty"):
        sources.load("meld", str(tmp_path))  # of ten clips
    (tmp_path / "train_splits" / "waves").rename(tmp_path / "train_splits" / "wav")
    with pytest.raises(UserError, match="no train_splits/waves, .* do ffmpeg -i"):
        sources.load("meld", str(tmp_path))
    with pytest.raises(UserError, match="holds no train_sent_emo.csv, hence not MELD"):
        sources.load("meld", str(tmp_path / "MELD.Raw"))
