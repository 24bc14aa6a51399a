"""Functions and classes that a config chooses by name, with options by signature.

A family is a folder (or file) of the library in which one function, or class, is one
choice: algorithms, aggregations, partitions, models, data sources. It is found by its
name or, where it is the user's own, by a dotted module or the path of a Python file.
Its options are what its signature takes beyond what the program gives it. Nothing
lists them elsewhere.

A module that a config names is imported, and so runs: a config is code, as its file is.
"""

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import pathlib
import pkgutil
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from gptfl_jax import rules
from gptfl_jax.errors import ConfigError, nearest, refused


class Family(NamedTuple):
    """Where the choices of a field lie, and what makes one.

    Attributes:
        field: the config field that names one, as "federated.algorithm".
        options: the field of its options, as "federated.algorithm_options".
        home: the package or module of the library that holds them.
        belongs: whether a public function or class of a module is one.
        given: parameters that the program fills in: they are no options.
        by_file: a file is one choice, called as the file: `belongs` holds for one
            thing in it.
        names_alone: the function, as "module:name", that gives further names the field
            may hold, without options: what needs the name alone knows them.
    """

    field: str
    options: str
    home: str
    belongs: Callable[[Any], bool]
    given: tuple[str, ...] = ()
    by_file: bool = False
    names_alone: str = ""


class Option(NamedTuple):
    """An option of a choice, as its signature and docstring state it."""

    default: Any
    """`inspect.Parameter.empty` where it must be given."""
    rule: rules.Rule | None
    help: str


def takes_first(*names: str) -> Callable[[Any], bool]:
    """Whether a function's first parameters have these names."""

    def belongs(function: Any) -> bool:
        return (
            inspect.isfunction(function)
            and tuple(inspect.signature(function).parameters)[: len(names)] == names
        )

    return belongs


def returns(name: str) -> Callable[[Any], bool]:
    """Whether a function is annotated to return the class of this name."""

    def belongs(function: Any) -> bool:
        if not inspect.isfunction(function):
            return False
        annotation = inspect.signature(function).return_annotation
        return getattr(annotation, "__name__", annotation) == name

    return belongs


def called(name: str) -> Callable[[Any], bool]:
    """Whether a function or class has this name."""
    return lambda thing: getattr(thing, "__name__", None) == name


@functools.cache
def available(family: Family) -> Mapping[str, Callable]:
    """The choices that come with the library, sorted by name."""
    home = importlib.import_module(family.home)
    modules = [home]
    if hasattr(home, "__path__"):
        modules += [
            importlib.import_module(f"{family.home}.{module.name}")
            for module in pkgutil.iter_modules(home.__path__)
            if not module.name.startswith("_")
        ]
    found = {}
    for module in modules:
        for name, thing in _own(module, family):
            found[module.__name__.rpartition(".")[2] if family.by_file else name] = (
                thing
            )
    return dict(sorted(found.items()))


def _own(module: ModuleType, family: Family) -> Iterator[tuple[str, Callable]]:
    """What belongs to a family among what a module defines itself."""
    for name, thing in vars(module).items():
        defined_here = getattr(thing, "__module__", None) == module.__name__
        if defined_here and not name.startswith("_") and family.belongs(thing):
            yield name, thing


_FILE = re.compile(r"(?P<place>.+\.py)(:(?P<wanted>\w+))?")
_MODULE = re.compile(r"(?P<place>([^\W\d]\w*\.)+[^\W\d]\w*)(:(?P<wanted>\w+))?")


def names_alone(family: Family) -> Collection[str]:
    """Names that stand in the family's field and are no choices."""
    if not family.names_alone:
        return ()
    module, _, function = family.names_alone.partition(":")
    return getattr(importlib.import_module(module), function)()


def is_own(name: str) -> bool:
    """Whether a name stands for the user's own code: a file or a dotted module."""
    return _place(name) is not None


def _place(name: str) -> re.Match | None:
    return _FILE.fullmatch(name) or _MODULE.fullmatch(name)


def stem(name: str) -> str:
    """A choice's name without folders, for the name of a run."""
    found = _place(name)
    if found is None:
        return name
    place = found.group("place")
    last = pathlib.Path(place).stem if place.endswith(".py") else place
    return found.group("wanted") or last.rpartition(".")[2]


def find(family: Family, name: str) -> Callable:
    """The choice of this name.

    Args:
        name: one of `available`; or a dotted module or the path of a Python file, with
            an optional `:function` behind it. Without, the file holds one that belongs
            to the family, or one called as the file is.

    Raises:
        ConfigError: no such choice, module or file, or it holds none.
    """
    if not is_own(name):
        known = available(family)
        if name in known:
            return known[name]
        near = nearest(name, known)
        hint = f"; did you mean {near}?" if near else ""
        raise refused(family.field, name, f"{names(family)}{hint}")
    place, wanted = _place(name).group("place", "wanted")
    own = dict(_own(_module(family, place), family))
    is_file = place.endswith(".py")
    called = wanted or (pathlib.Path(place).stem if is_file else place.split(".")[-1])
    if called in own:
        return own[called]
    if len(own) == 1 and not wanted:
        return next(iter(own.values()))
    model = next(iter(available(family).values()))
    kind = "class" if inspect.isclass(model) else "function"
    held = "several: add :name behind it, of " + ", ".join(own) if own else "none"
    raise ConfigError(
        f"config.{family.field} = {name!r}: takes a file with a {kind} like "
        f"{model.__module__}.{model.__name__}{_parameters(model)}, and it holds {held}"
    )


def _parameters(function: Callable) -> str:
    required = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    returned = inspect.signature(function).return_annotation
    arrow = f" -> {returned.__name__}" if inspect.isclass(returned) else ""
    return f"({', '.join([*required, '...'])}){arrow.removesuffix(' -> _empty')}"


def names(family: Family) -> str:
    """What the field takes, in words."""
    own = "or your own, as my_package.my_file or path/to/file.py"
    return f"one of {', '.join(available(family))}, {own}"


def _module(family: Family, place: str) -> ModuleType:
    field = f"config.{family.field} = {place!r}"
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = pathlib.Path(place).expanduser().resolve()
        # A name of its own: two files may be called alike, none shall hide a package,
        # and one that a notebook has changed is another. Classes and pickles find their
        # module by it.
        told = str(path).encode() + path.read_bytes()
        digest = hashlib.sha256(told).hexdigest()[:8]
        module_name = f"_own_{path.stem}_{digest}"
        if module_name in sys.modules:
            return sys.modules[module_name]
        spec = importlib.util.spec_from_file_location(module_name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
        return module
    except FileNotFoundError:
        raise ConfigError(f"{field}: no such file") from None
    except ModuleNotFoundError as error:
        if error.name and place.startswith(error.name):
            raise ConfigError(
                f"{field}: no such module; {names(family)}. A module is looked for in "
                "the folders of PYTHONPATH and in this one"
            ) from None
        raise ConfigError(f"{field}: {error}") from error
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"{field}: {error}") from error


def options(family: Family, function: Callable) -> dict[str, Option]:
    """The options of a choice, by name."""
    found = parameters(function)
    return {name: each for name, each in found.items() if name not in family.given}


def parameters(function: Callable) -> dict[str, Option]:
    """What a function takes, by name: defaults, rules and what its docstring says."""
    helps = help_texts(function)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if name.startswith("_"):
            continue
        found[name] = Option(
            parameter.default,
            None
            if parameter.annotation is parameter.empty
            else rules.of_annotation(parameter.annotation),
            helps.get(name, ""),
        )
    return found


def takes(family: Family, name: str, parameter: str) -> bool:
    """Whether a choice has a parameter of this name.

    Raises:
        ConfigError: as `find`.
    """
    return parameter in inspect.signature(find(family, name)).parameters


def check(family: Family, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options for a choice, checked: what `bind` gives it.

    Args:
        values: from the config field of its options.

    Returns:
        The values by name, whole numbers that stand for real ones as floats.

    Raises:
        ConfigError: as `find`; an option that it does not take, a value out of range,
            or one that it needs and that is missing.
    """
    function = find(family, name)
    known = options(family, function)
    checked = {}
    for option, value in values.items():
        if option not in known:
            raise _no_such_option(family, name, option, known)
        rule, default = known[option].rule, known[option].default
        if hasattr(value, "to_dict"):
            value = value.to_dict()
        if rule is not None and not rule.valid(value):
            raise refused(f"{family.options}.{option}", value, rule.takes)
        is_float = isinstance(default, float) and rules.is_whole(value)
        checked[option] = float(value) if is_float else value
    for option, (default, rule, _) in known.items():
        if default is inspect.Parameter.empty and option not in checked:
            takes = f"takes {rule.takes}" if rule else f"{name} needs it"
            raise ConfigError(f"config.{family.options}.{option} is missing: {takes}")
    return checked


def _no_such_option(
    family: Family, name: str, option: str, known: Mapping[str, Option]
) -> ConfigError:
    if not known:
        hint = "it takes none"
    elif near := nearest(option, known):
        hint = f"did you mean {near}?"
    else:
        hint = f"it takes {', '.join(known)}"
    return ConfigError(
        f"config.{family.options}.{option}: {name} takes no such option; {hint}"
    )


def bind(family: Family, name: str, values: Mapping[str, Any], **given: Any) -> Any:
    """Calls a choice with its options and with what the program gives.

    Args:
        given: by name. Of the family's `given` a choice gets those it has parameters
            for; others it must take.

    Raises:
        ConfigError: as `check`; or the choice refuses by a ValueError what it is given.
    """
    function = find(family, name)
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    checked = check(family, name, values)
    taken = {k: v for k, v in given.items() if takes_any or k in parameters}
    if lost := [k for k in given if k not in taken and k not in family.given]:
        raise ConfigError(
            f"config.{family.field} = {name!r}: takes a function with **options, by "
            f"which it is given {', '.join(lost)}"
        )
    try:
        return function(**taken, **checked)
    except ValueError as error:
        # What does not go together, as scaffold and Adam.
        raise ConfigError(f"config.{family.field} = {name!r}: {error}") from error


def title(function: Callable) -> str:
    """How a choice is called in tables: its docstring's beginning, up to a colon."""
    first, colon, _ = (inspect.getdoc(function) or "").partition("\n")[0].partition(":")
    return first if colon else function.__name__


def summary(function: Callable) -> str:
    """The first line of a choice's docstring."""
    return (inspect.getdoc(function) or "").partition("\n")[0]


def help_texts(function: Callable) -> dict[str, str]:
    """What the docstring says of each parameter, by name.

    Under `Args:` or `Attributes:`, `name: text` or `one, other: text`; of a class also
    the strings behind its fields.
    """
    texts = _strings_behind_fields(function) if inspect.isclass(function) else {}
    lines = iter((inspect.getdoc(function) or "").splitlines())
    for line in lines:
        if line.strip() not in ("Args:", "Attributes:"):
            continue
        current, indent = [], None
        for line in lines:
            if not line.strip():
                continue
            depth = len(line) - len(line.lstrip())
            if depth == 0:
                break
            indent = depth if indent is None else indent
            entry = re.match(r"\s*([\w, *]+):\s*(.*)", line)
            if depth == indent and entry:
                current = [name.strip(" *") for name in entry[1].split(",")]
                texts.update(dict.fromkeys(current, entry[2]))
            else:
                for name in current:
                    texts[name] += " " + line.strip()
    return {name: text.strip() for name, text in texts.items()}


def _strings_behind_fields(cls: type) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return {}
    body = tree.body[0].body
    return {
        field.target.id: " ".join(string.value.value.split())
        for field, string in zip(body, body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(string, ast.Expr)
        and isinstance(string.value, ast.Constant)
        and isinstance(string.value.value, str)
    }
