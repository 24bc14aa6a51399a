import string

import pytest

from gptfl_jax import labels
from gptfl_jax.data import sources
from gptfl_jax.errors import UserError

# Published sizes.
SIZES = {
    "caltech101": 101,
    "cifar10": 10,
    "cifar100": 100,
    "covid_radiography": 3,
    "drumkits": 6,
    "emnist": 62,
    "esc50": 50,
    "eurosat": 10,
    "fashion_mnist": 10,
    "femnist": 62,
    "flowers102": 102,
    "food101": 101,
    "fsdd": 10,
    "mnist": 10,
    "sklearn_digits": 10,
    "speech_commands": 35,
    "svhn": 10,
    "urbansound8k": 10,
}


def test_known_data_sets_have_their_published_number_of_classes():
    assert {n: len(labels.label_set(n).classes) for n in labels.known_data_sets()} == (
        SIZES
    )


@pytest.mark.parametrize("name", SIZES)
def test_label_sets_are_consistent(name):
    known = labels.label_set(name)
    assert len(set(known.classes)) == len(known.classes)
    assert set(known.phrases) == set(known.classes)
    for method, template in known.templates.items():
        fields = {field for _, field, _, _ in string.Formatter().parse(template)}
        expected = {"name", "domain"} if method == "multi_domain" else {"name"}
        assert fields - {None} == expected
        assert known.domains or method != "multi_domain"
    for class_name in known.classes:
        phrase = known.phrases[class_name]
        assert phrase == " ".join(phrase.split()) and "_" not in phrase
        assert labels.names_class(f"this shows {phrase}.", phrase)
        others = set(known.classes) - {class_name}
        assert not any(labels.same_name(class_name, other) for other in others)


def test_spellings_of_the_releases():
    assert labels.label_set("cifar10").classes[:3] == ("airplane", "automobile", "bird")
    assert labels.label_set("cifar10").phrases["airplane"] == "an Airplane"
    assert labels.label_set("food101").phrases["apple_pie"] == "apple pie"
    assert labels.label_set("eurosat").phrases["SeaLake"] == "a Sea or Lake"
    assert labels.label_set("flowers102").phrases["pink-yellow dahlia?"] == (
        "pink-yellow dahlia"
    )
    assert labels.label_set("sklearn_digits").phrases["7"] == "seven"
    source = sources.load("sklearn_digits")
    assert labels.label_set("sklearn_digits").classes == source.train.class_names
    spoken = labels.label_set("fsdd")
    assert spoken.classes == source.train.class_names
    assert list(spoken.phrases.values()) == (
        "zero one two three four five six seven eight nine".split()
    )


def test_unknown_data_set_says_what_to_do():
    with pytest.raises(
        UserError, match=r"known: caltech101, .*config\.prompts\.classes"
    ):
        labels.label_set("imagenet")


def test_label_set_of_any_names():
    some = labels.label_set_of(["pho", "sushi"], "food101")
    assert some.classes == ("pho", "sushi")
    assert some.templates["class_prompt"] == "a food photo of {name}"
    others = labels.label_set_of(["fire_truck", "IceCream"], "food101")
    assert others.phrases == {"fire_truck": "fire truck", "IceCream": "Ice Cream"}
    assert others.templates["class_prompt"] == "a photo of {name}"
    assert others.name == ""
    with pytest.raises(UserError, match="names cat twice"):
        labels.label_set_of(["cat", "dog", "cat"])
    with pytest.raises(UserError, match="no class name"):
        labels.label_set_of([])


@pytest.mark.parametrize(
    "first, second, same",
    [
        ("an Airplane", "airplane", True),
        ("a_Cat", "cat", True),
        ("hot_dog", "Hotdog", True),
        ("AnnualCrop", "annual crop", True),
        ("cat", "car", False),
        ("a", "an", False),
        ("cat", "cats", False),
        ("C++", "C", True),  # words alone count
        ("+", "-", False),
    ],
)
def test_same_name(first, second, same):
    assert labels.same_name(first, second) is same


@pytest.mark.parametrize(
    "sentence, label",
    [
        ("A cat sits.", "cat"),
        ("CATS!", "cat"),
        ("the cat's paw", "cat"),
        ("a cat-like thing", "cat"),
        ("cat_1", "cat"),
        ("two Airplanes", "an Airplane"),
        ("buses and boxes", "bus"),
        ("buses and boxes", "box"),
        ("butterflies", "butterfly"),
        ("three mice", "mouse"),
        ("two firemen", "fireman"),
        ("many children", "child"),
        ("wolves", "wolf"),
        ("a donut", "donuts"),
        ("one footstep", "footsteps"),
        ("a waffle", "waffles"),
        ("a glass", "glasses"),
        ("two hot dogs", "hot_dog"),
        ("a hot-dog stand", "hot_dog"),
        ("hotdog", "hot_dog"),
        ("a birds of paradise flower", "bird of paradise"),
        ("crème brûlée", "creme_brulee"),
        ("a colt\u2019s foot", "colt's foot"),
        ("an annual crop field", "AnnualCrop"),
        ("a deep lake", "a Sea or Lake"),
        ("by the sea", "a Sea or Lake"),
        ("COVID-19 in a lung", "COVID"),
        ("the digit 7", "7"),
        ("written in C++ code", "C++"),
        ("rhythm & blues", "rhythm&blues"),
        ("Dr. Pepper", "Dr. Pepper"),
    ],
)
def test_names_class(sentence, label):
    assert labels.names_class(sentence, label)
    assert labels.names_class(sentence, "something else", label)


@pytest.mark.parametrize(
    "sentence, label",
    [
        ("a catalog", "cat"),
        ("a scatter of leaves", "cat"),
        ("a blackbird", "bird"),
        ("a steamship", "ship"),
        ("a hotdog", "dog"),
        ("a plane", "airplane"),
        ("the digit 77", "7"),
        ("a hot day for a dog", "hot dog"),
        ("it is hot. Dogs bark", "hot dog"),
        ("two foxes", "ox"),
        ("", "cat"),
    ],
)
def test_does_not_name_class(sentence, label):
    assert not labels.names_class(sentence, label)


@pytest.mark.parametrize(
    "name", ["caf\udce9", "red\x1b[31m", "two\nlines", "a\x9b", " "]
)
def test_names_that_cannot_be_written_or_shown_are_refused(name):
    with pytest.raises(UserError, match="takes words in UTF-8 without control") as info:
        labels.label_set_of(["cat", name])
    assert str(info.value).isprintable() and str(info.value).isascii()
