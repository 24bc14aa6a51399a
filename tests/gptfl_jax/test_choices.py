"""Choices by name, by module and by file; options by signature."""

import inspect
import textwrap
from typing import Annotated, Literal

import numpy as np
import pytest

from gptfl_jax import choices, families, models, rules
from gptfl_jax.choices import Family
from gptfl_jax.errors import ConfigError

OWN = Family("shop.fruit", "shop.options", "tests.fruits", choices.returns("Fruit"))


def own_file(tmp_path, text: str, name: str = "mine.py") -> str:
    path = tmp_path / name
    path.write_text(textwrap.dedent(text))
    return str(path)


TWO = """
    def apple(size: int = 1) -> "Fruit":
        return size

    def pear(size: int = 2, *, ripe: bool = False) -> "Fruit":
        return size, ripe

    def helper() -> int:
        return 3

    def _hidden() -> "Fruit":
        return 0
"""


def test_a_file_of_ones_own_by_path_and_function(tmp_path):
    path = own_file(tmp_path, TWO)
    assert choices.find(OWN, f"{path}:pear")() == (2, False)
    assert choices.bind(OWN, f"{path}:pear", {"ripe": True}, size=7) == (7, True)
    # The one that is called as its file.
    path = own_file(tmp_path, TWO, "apple.py")
    assert choices.find(OWN, path)() == 1
    # The file is read once: what it defines stays the same class.
    assert choices.find(OWN, path) is choices.find(OWN, path)
    # One that has been changed since, as in a notebook, is read again.
    path = own_file(
        tmp_path, TWO.replace("return size\n", "return -size\n"), "apple.py"
    )
    assert choices.find(OWN, path)() == -1


def test_a_dotted_module_of_ones_own(tmp_path, monkeypatch):
    package = tmp_path / "orchard_of_test"
    package.mkdir()
    own_file(package, 'def plum() -> "Fruit":\n    return 4\n', "stone.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert choices.find(OWN, "orchard_of_test.stone")() == 4
    assert choices.find(OWN, "orchard_of_test.stone:plum")() == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_like_this\n", "No module named 'nothing_like_this'"),
        ("def f(:\n", "invalid syntax"),
    ],
)
def test_files_that_do_not_load(tmp_path, text, said):
    path = own_file(tmp_path, text)
    with pytest.raises(ConfigError, match=said) as caught:
        choices.find(families.MODEL, path)
    assert str(caught.value).startswith(f"config.model.name = {path!r}: ")


def test_files_that_hold_no_choice_or_several(tmp_path):
    path = own_file(tmp_path, "x = 3\n")
    said = (
        r"like gptfl_jax.models.audio_cnn.Model\(num_classes, ...\), and it holds none"
    )
    with pytest.raises(ConfigError, match=said):
        choices.find(families.MODEL, path)
    with pytest.raises(ConfigError, match="no such file"):
        choices.find(families.MODEL, str(tmp_path / "other.py"))
    with pytest.raises(ConfigError, match="no such module; one of audio_cnn"):
        choices.find(families.MODEL, "no_such_package.model")


def test_names_that_are_nearly_right_are_offered():
    with pytest.raises(ConfigError, match="takes one of .*did you mean convnet?"):
        choices.find(families.MODEL, "convnets")


def test_a_model_of_ones_own(tmp_path):
    path = own_file(
        tmp_path,
        '''
        import flax.linen as nn

        class Model(nn.Module):
            """One layer.

            Attributes:
                num_classes: outputs.
                scale: of the logits.
            """

            num_classes: int
            scale: float = 1.0
            bias: bool = True
            """Whether the layer has one."""

            @nn.compact
            def __call__(self, inputs, train=False, mask=None):
                x = inputs.reshape(len(inputs), -1)
                x = nn.Dense(self.num_classes, self.bias, name="classifier")(x)
                return self.scale * x
        ''',
    )
    known = choices.options(families.MODEL, choices.find(families.MODEL, path))
    assert list(known) == ["scale", "bias"]
    assert known["scale"].help == "of the logits."
    assert known["bias"] == (True, rules.FLAG, "Whether the layer has one.")
    model = models.create(path, 3, scale=2)
    assert model.scale == 2.0 and isinstance(model.scale, float)
    logits, _ = model.init_with_output(
        {"params": np.zeros(2, np.uint32)}, np.ones((2, 4))
    )
    assert logits.shape == (2, 3)
    with pytest.raises(ConfigError, match="options.scale = 'big': takes a number"):
        models.create(path, 3, scale="big")
    with pytest.raises(ConfigError, match="options.bais: .* did you mean bias?"):
        models.create(path, 3, bais=False)


def test_rules_are_read_from_annotations():
    def takes(annotation):
        return rules.of_annotation(annotation).takes

    assert takes(rules.NonNegative) == "a number >= 0"
    assert takes(Annotated[int, "a note", rules.whole(1)]).startswith(
        "a whole number >="
    )
    assert takes(Annotated[int, "a note"]) == "a whole number"
    assert takes(Literal["path", "start"]) == "one of path, start"
    assert takes(int | float) == "a number"
    assert takes(str | None) == "text in UTF-8 or None"
    assert takes(tuple[int, ...]) == "a list of whole numbers"
    assert takes(dict | None) == "keyword arguments, as in {'name': value} or None"
    assert rules.of_annotation(np.ndarray) is None
    share = rules.of_annotation(rules.ProperFraction)
    assert share.valid(0) and share.valid(0.99)
    assert not share.valid(1) and not share.valid(True) and not share.valid("0.5")


def test_help_is_read_from_docstrings():
    def function(learner, a: int, *, b, c, **rest):
        """Short.

        Args:
            learner: given.
            a: one line
                and another: of it.
            b, c: of both.

        Returns:
            d: nothing.
        """

    family = OWN._replace(given=("learner",))
    found = choices.options(family, function)
    assert {name: option.help for name, option in found.items()} == {
        "a": "one line and another: of it.",
        "b": "of both.",
        "c": "of both.",
    }
    assert found["a"].default is inspect.Parameter.empty
    assert found["b"].rule is None


def test_an_option_without_default_is_asked_for(tmp_path):
    path = own_file(tmp_path, 'def a(size: int) -> "Fruit":\n    return size\n', "a.py")
    with pytest.raises(ConfigError, match="options.size is missing: takes a whole"):
        choices.check(OWN, path, {})


def test_what_a_program_gives_is_never_lost(tmp_path):
    path = own_file(tmp_path, 'def a(size: int = 1) -> "Fruit":\n    return size\n')
    with pytest.raises(ConfigError, match=r"takes a function with \*\*options"):
        choices.bind(OWN, path, {}, weight=3)
    family = OWN._replace(given=("weight",))  # what a choice may do without
    assert choices.bind(family, path, {}, weight=3) == 1


def test_what_does_not_go_together_is_a_line(tmp_path):
    text = 'def a(size: int = 1) -> "Fruit":\n    raise ValueError("too small")\n'
    with pytest.raises(ConfigError, match=r"^config\.shop\.fruit = '.*': too small$"):
        choices.bind(OWN, own_file(tmp_path, text), {})


def test_titles_are_the_docstrings_beginning():
    def one():
        """FedProx: a proximal term."""

    def two():
        """A proximal term."""

    assert choices.title(one) == "FedProx"
    assert choices.title(two) == "two"
    assert choices.summary(two) == "A proximal term."
