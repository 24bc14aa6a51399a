import json
import os
import pathlib
import pickle

import jax
import numpy as np
import pytest

from gptfl_jax import labels, prompting
from gptfl_jax.errors import UserError
from gptfl_jax.prompting import Request

FOOD = labels.label_set_of(["apple_pie", "sushi"], "food101")
KEY = jax.random.key(3)


def test_class_prompt_by_hand():
    assert prompting.class_prompt(Request(FOOD)) == {
        "apple_pie": ["a food photo of apple pie"],
        "sushi": ["a food photo of sushi"],
    }
    assert prompting.class_prompt(Request(FOOD, template="{name}!"))["sushi"] == [
        "sushi!"
    ]
    flowers = Request(labels.label_set("flowers102"))
    assert prompting.class_prompt(flowers)["moon orchid"] == [
        "a flower photo of moon orchid"
    ]
    covid = prompting.class_prompt(Request(labels.label_set("covid_radiography")))
    assert covid["COVID"] == [
        "a high-resolution chest X-ray image showing typical features of COVID-19"
    ]
    sounds = prompting.class_prompt(Request(labels.label_set("esc50")))
    assert sounds["sea_waves"] == ["a sound of sea waves"]
    words = prompting.class_prompt(Request(labels.label_set("speech_commands")))
    assert words["wow"] == ["wow"]


def test_multi_domain_by_hand():
    prompts = prompting.multi_domain(Request(FOOD))
    assert prompts["apple_pie"] == [
        "a food photo of apple pie",
        "a food drawing of apple pie",
        "a food painting of apple pie",
        "a food sketch of apple pie",
        "a food collage of apple pie",
        "a food poster of apple pie",
        "a food digital art image of apple pie",
        "a food rock drawing of apple pie",
        "a food stick figure of apple pie",
        "a food 3D rendering of apple pie",
    ]
    request = Request(FOOD, "{domain}: {name}", ("oil", "ink"))
    assert prompting.multi_domain(request)["sushi"] == ["oil: sushi", "ink: sushi"]
    sounds = prompting.multi_domain(Request(labels.label_set("esc50")))
    assert sounds["rain"] == [
        "rain in a studio",
        "rain in the field",
        "rain at home",
        "rain in an office",
    ]


def test_ucg_by_hand():
    assert prompting.ucg(Request(FOOD)) == prompting.class_prompt(Request(FOOD))
    # ESC-50's leaves "a sound of" away.
    assert prompting.ucg(Request(labels.label_set("esc50")))["rain"] == ["rain"]


@pytest.mark.parametrize(
    "method, template",
    [
        ("class_prompt", "a photo"),
        ("class_prompt", "{name} {domain}"),
        ("class_prompt", "{name} {}"),
        ("class_prompt", "{name} {"),
        ("class_prompt", "{name.__class__}"),
        ("multi_domain", "a photo of {name}"),
    ],
)
def test_bad_template_is_refused(method, template):
    with pytest.raises(UserError, match=r"config\.prompts\.template = .*takes"):
        getattr(prompting, method)(Request(FOOD, template=template))


def test_method_without_template_says_so():
    words = Request(labels.label_set("speech_commands"))
    with pytest.raises(UserError, match="none is known for multi_domain of speech_com"):
        prompting.multi_domain(words)


def write(path: pathlib.Path, content: object) -> str:
    path.write_bytes(pickle.dumps(content))
    return str(path)


LISTS = {
    "Some_thing": ["else"],
    "a Dog": ["a dog", "two dogs"],
    "an Airplane": ["an Airplane lands"],
}


@pytest.mark.parametrize("form", ["pickle", "pickle 0", "json", "prompts.json"])
def test_imported_lists_are_matched_to_classes(tmp_path, form):
    path = tmp_path / "lists"
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(LISTS, protocol=0 if form[-1] == "0" else 3))
    else:
        content = LISTS if form == "json" else {"prompts": LISTS, "made": {"seed": 1}}
        path.write_text(json.dumps(content))
    wanted = labels.label_set_of(["airplane", "dog"], "cifar10")
    assert prompting.imported(Request(wanted, imported_file=str(path))) == {
        "airplane": ["an Airplane lands"],
        "dog": ["a dog", "two dogs"],
    }


def test_import_names_what_does_not_fit(tmp_path):
    def read(lists: object, classes: list[str]) -> None:
        file = write(tmp_path / "lists.pkl", lists)
        prompting.imported(Request(labels.label_set_of(classes), imported_file=file))

    with pytest.raises(
        UserError, match=r"no list for class 'cat', but Some_thing, a D"
    ):
        read(LISTS, ["dog", "cat"])
    with pytest.raises(
        UserError, match="more than one list for class 'dog', but a Dog"
    ):
        read(LISTS | {"dog": []}, ["dog"])
    for content in ([], {}, {"dog": "a dog"}, {"dog": [1]}, {1: ["dog"]}):
        with pytest.raises(UserError, match="dict or JSON object of class name"):
            read(content, ["dog"])
    for data in (b"", b"not a pickle", b'{"dog": ', pickle.dumps(LISTS)[:-5]):
        (tmp_path / "lists.pkl").write_bytes(data)
        with pytest.raises(UserError, match="lists.pkl: cannot be read"):
            prompting.read_prompt_lists(tmp_path / "lists.pkl")
    with pytest.raises(UserError, match=r"gone.pkl: cannot be read \(No such file"):
        prompting.read_prompt_lists(tmp_path / "gone.pkl")
    with pytest.raises(UserError, match="Is a directory"):
        prompting.read_prompt_lists(tmp_path)


class _Payload:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_cannot_run_anything(tmp_path):
    trap = str(tmp_path / "was_here")
    file = write(tmp_path / "lists.pkl", {"dog": [_Payload(trap)]})
    with pytest.raises(UserError, match=r"posix\.mkdir, which is forbidden"):
        prompting.read_prompt_lists(pathlib.Path(file))
    assert not os.path.exists(trap)
    pickle.loads(pathlib.Path(file).read_bytes())  # the trap is a real one
    assert os.path.exists(trap)


@pytest.mark.parametrize(
    "raw, expected",
    [
        ("a bird in a savannah<extra_id_20> flowers.", "a bird in a savannah flowers."),
        ("<pad> a cat</s><pad>", "a cat"),
        ("a cat <extra_id_1>.", "a cat."),
        ("<|startoftext|>a cat<|endoftext|>", "a cat"),
        ("[CLS] a cat [SEP]", "a cat"),
        ("  a \t cat \n", "a cat"),
        ("1 < 2 > 0 <b>cat</b>", "1 < 2 > 0 <b>cat</b>"),
        ("a cat .5 m long", "a cat .5 m long"),
    ],
)
def test_clean(raw, expected):
    assert prompting.clean(raw) == expected


@pytest.mark.parametrize("name", ["rock , paper", "mask <mask> on", "<pad>"])
def test_select_keeps_names_that_are_cleaned(name):
    sentences = [f"a photo of {name}", "a photo of scissors"]
    kept = prompting.select(sentences, [name], jax.random.key(0)).kept
    assert kept == (() if name == "<pad>" else (prompting.clean(sentences[0]),))


def test_select_counts_what_it_drops():
    sentences = [
        "a cat<pad>",
        "A Cat",  # a duplicate but for case
        "a catalog",  # misses the class
        "two cats",
        "a dog",  # misses the class
        "a cat ",  # a duplicate once cleaned
    ]
    selection = prompting.select(sentences, ("cat",), KEY)
    assert selection == prompting.Selection(
        kept=("a cat", "two cats"),
        cleaned=2,
        without_class=2,
        duplicates=2,
        over_limit=0,
    )


def test_limit_draws_without_replacement_in_order():
    sentences = [f"cat {i}" for i in range(50)]
    selection = prompting.select(sentences, ("cat",), KEY, most=20)
    numbers = [int(sentence.split()[1]) for sentence in selection.kept]
    assert len(set(numbers)) == 20 and selection.over_limit == 30
    assert numbers == sorted(numbers) and numbers != list(range(20))
    assert selection == prompting.select(sentences, ("cat",), KEY, most=20)
    other = prompting.select(sentences, ("cat",), jax.random.key(4), most=20)
    assert other.kept != selection.kept
    assert prompting.select(sentences, ("cat",), KEY, most=80).kept == tuple(sentences)


def test_the_originals_cifar10_list():
    """Counted with grep -ciw on the list: `airplanes?`, `automobiles?`, ..."""
    if "GPTFL_DATA_DIR" not in os.environ:
        pytest.skip("GPTFL_DATA_DIR is not set")
    folder = pathlib.Path(os.environ["GPTFL_DATA_DIR"])
    file = folder / "gptfl" / "cifar10_promptlist.pkl"
    known = labels.label_set("cifar10")
    lists = prompting.imported(Request(known, imported_file=str(file)))
    assert tuple(lists) == known.classes
    assert {len(sentences) for sentences in lists.values()} == {200}
    selections = {
        name: prompting.select(lists[name], (name, known.phrases[name]), KEY)
        for name in known.classes
    }
    assert {name: len(selection.kept) for name, selection in selections.items()} == {
        "airplane": 155,
        "automobile": 159,
        "bird": 181,
        "cat": 194,
        "deer": 187,
        "dog": 186,
        "frog": 197,
        "horse": 186,
        "ship": 186,
        "truck": 184,
    }
    duplicates = {name: s.duplicates for name, s in selections.items() if s.duplicates}
    assert duplicates == {"automobile": 1}
    assert sum(s.without_class for s in selections.values()) == 184
    assert "A white bird in the forest feeding off a savannah flowers." in (
        selections["bird"].kept
    )
    kept = [sentence for s in selections.values() for sentence in s.kept]
    assert not any("<" in sentence for sentence in kept)


def test_draws_depend_on_class_and_index_alone():
    long = prompting.draw(KEY, "cat", 2500, 7, 2)
    short = prompting.draw(KEY, "cat", 3, 7, 2)
    for few, many in zip(short, long, strict=True):
        assert few.tolist() == many[:3].tolist() and len(many) == 2500
    dog = prompting.draw(KEY, "dog", 2500, 7, 2)
    assert (dog.seed != long.seed).all()
    other_key = prompting.draw(jax.random.key(4), "cat", 2500, 7, 2)
    assert (other_key.seed != long.seed).all()
    # More prompts or scales to choose from change no seed.
    assert (prompting.draw(KEY, "cat", 2500, 9, 1).seed == long.seed).all()


def test_draws_by_hand():
    draws = prompting.draw(KEY, "cat", 1100, 7, 2)
    key = KEY
    # crc32 of "samples", crc32 of "cat", the index
    for number in (np.uint32(0x19925777), np.uint32(0x9E5E43A8), 1050):
        key = jax.random.fold_in(key, number)
    keys = jax.random.split(key, 3)
    assert draws.prompt[1050] == jax.random.randint(keys[0], (), 0, 7)
    assert draws.choice[1050] == jax.random.randint(keys[1], (), 0, 2)
    assert draws.seed[1050] == int(jax.random.bits(keys[2])) // 2


def test_draws_are_uniform_and_reach_the_last():
    draws = prompting.draw(KEY, "cat", 7000, 7, 5)
    counts = np.bincount(draws.prompt, minlength=7)
    # 5 standard deviations of a binomial count with mean 1,000
    assert len(counts) == 7 and np.abs(counts - 1000).max() < 5 * np.sqrt(1000 * 6 / 7)
    counts = np.bincount(draws.choice, minlength=5)
    assert len(counts) == 5
    assert np.abs(counts - 1400).max() < 5 * np.sqrt(1400 * 4 / 5)
    assert len(set(draws.seed.tolist())) > 6990 and draws.seed.min() >= 0


# Text models ------------------------------------------------------------------------


def test_model_inputs_by_hand():
    cifar = labels.label_set_of(["bird", "dog"], "cifar10")
    inputs = prompting.commongen(Request(cifar))
    assert inputs == {"bird": "a Bird", "dog": "a Dog"}
    question = prompting.chat(Request(cifar))["dog"]
    assert '"_ _ _ _ a Dog _ _ _ _"' in question
    inputs = prompting.chat(Request(cifar, template="{name}?"))
    assert inputs["dog"] == "a Dog?"


def test_until_enough_by_hand():
    sentences = ["a cat", "a dog", "A CAT<pad>", "two cats", "my cat", "the cat"]
    asked = []

    def draw(start):
        asked.append(start)
        return sentences[start : start + 2]

    def drawn(count, most=6):
        asked.clear()
        return prompting.until_enough(draw, ("cat",), count, most)

    assert drawn(1) == sentences[:1] and asked == [0]
    assert drawn(2) == sentences[:4] and asked == [0, 2]
    assert drawn(3) == sentences[:5] and asked == [0, 2, 4]
    # Given up, never beyond the limit.
    assert drawn(9) == sentences and drawn(9, most=3) == sentences[:3]
    selection = prompting.select(drawn(3), ("cat",), KEY)
    assert selection.kept == ("a cat", "two cats", "my cat")


def test_sentence_keys_by_hand():
    keys = prompting.sentence_keys(KEY, "cat", [5, 6, 9])
    key = KEY
    # crc32 of "sentences", crc32 of "cat", the index
    for number in (np.uint32(0xED2A8F1E), np.uint32(0x9E5E43A8), 6):
        key = jax.random.fold_in(key, number)
    assert (jax.random.key_data(keys[1]) == jax.random.key_data(key)).all()
