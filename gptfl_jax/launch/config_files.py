"""Config files: found by path or name, read, and refused with their line."""

import dis
import importlib.util
import linecache
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from gptfl_jax import configuration
from gptfl_jax.errors import ConfigError, UserError

_PACKAGE = pathlib.Path(__file__).parent.parent

# A wheel carries the config files in the package; a checkout has them beside it.
_INSTALLED_CONFIGS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


# Names of sections, with tuples of those that a config has one of.
Sections = Sequence[str | tuple[str, ...]]


def read_config(argument: str, sections: Sections = ()) -> ConfigDict:
    """Loads `path_or_name[:config string]`.

    A path that does not exist here is looked for among the configs that come with
    gptfl-jax, by its last part, so that `digits` and `configs/digits.py` mean the same
    file in any folder.

    Raises:
        ConfigError: no such file, no `get_config` in it, a config it could not build,
            or one that lacks a section of `sections`.
    """
    name, _, arg = argument.partition(":")
    path = find_config(name)
    # A name of its own: two config files may both be called digits.py.
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(
            f"{path}: not a Python file, as configs/digits.py is, with get_config(arg)"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError("has no function get_config(arg), which returns the config")
        if arg and not _heeds_argument(module.get_config):
            raise UserError(
                f"get_config does nothing with {arg!r}, what stands behind the colon: "
                "set fields by --config.<section>.<field>=<value>, or have it call "
                "configuration.apply_arguments"
            )
        config = module.get_config(arg)
    except UserError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (AttributeError, KeyError, TypeError, SyntaxError, ImportError) as error:
        # What a locked ConfigDict and a mistyped file raise.
        raise ConfigError(_explain_config_error(error, path)) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config must return a ConfigDict")
    for choice in sections:
        names = (choice,) if isinstance(choice, str) else choice
        if sum(name in config for name in names) != 1:
            listed = " or ".join(f"`{name}`" for name in names)
            raise ConfigError(
                f"{path} has no section {listed}, which this program needs: name "
                f"{'it' if len(names) == 1 else 'one'} in "
                "configuration.default_config(...)"
                if not any(name in config for name in names)
                else f"{path} has the sections {listed}: this program takes one"
            )
    return config


def _heeds_argument(get_config: Any) -> bool:
    """Whether a function reads its first parameter, as far as its code shows."""
    code = getattr(get_config, "__code__", None)
    if code is None or not code.co_argcount:
        return True  # it is called, and says itself what it does not take
    name = code.co_varnames[0]
    return any(
        each.opname.startswith("LOAD") and name in _names(each.argval)
        for each in dis.get_instructions(code)
    )


def _names(value: Any) -> tuple[Any, ...]:
    """What an instruction names: one thing, or from Python 3.13 on two at once."""
    return value if isinstance(value, tuple) else (value,)


def find_config(name: str) -> pathlib.Path:
    given = pathlib.Path(name).expanduser()
    if given.is_file():
        return given
    for folder in _INSTALLED_CONFIGS:
        installed = folder / f"{given.stem}.py"
        of_ours = given.suffix in ("", ".py") and str(given.parent) in (".", "configs")
        if of_ours and installed.is_file():
            return installed
    names = ", ".join(installed_configs())
    raise ConfigError(
        f"--config={name}: no such file, nor a config that comes with gptfl-jax "
        f"({names})"
    )


def installed_configs() -> list[str]:
    """Names of the config files that come with gptfl-jax."""
    for folder in _INSTALLED_CONFIGS:
        if folder.is_dir():
            return sorted(
                path.stem for path in folder.glob("*.py") if path.stem[0] != "_"
            )
    return []


# How ml_collections begins what it says about a field that is not there, before it
# lists all that are.
_NO_SUCH_FIELD = re.compile(r"""Key "(\w+)" does not exist|'(\w+)'( Did you mean|$)""")


def _explain_config_error(error: Exception, path: pathlib.Path) -> str:
    """The line of a config file that did not work, and why, in one line."""
    number = _line_of(error, path)
    where = f"{path} line {number}" if number else str(path)
    # An AttributeError of ml_collections holds a KeyError, whose text has quotes more.
    said: Any = error
    while isinstance(said, AttributeError | KeyError) and said.args:
        said = said.args[0]
    text = " ".join(str(said).split())
    if missing := _NO_SUCH_FIELD.match(text):
        name = missing[1] or missing[2]
        if name in configuration.SCHEMA:
            return (
                f"{where}: this config has no section `{name}`; name it in "
                "configuration.default_config(...)"
            )
        line = linecache.getline(str(path), number)
        section = re.search(rf"(\w+)(?:\.|\[['\"]){name}\b", line)
        known = [*configuration.SCHEMA, *(name for name, _ in configuration.fields())]
        if section and section[1] in configuration.SCHEMA:
            name = f"{section[1]}.{name}"
        return f"{where}: {configuration.no_such_field(name, known)}"
    return f"{where}: {' '.join(str(error).split())}"


def _line_of(error: Exception, path: pathlib.Path) -> int:
    """The line of the config file that an error passed through; 0: none."""
    if isinstance(error, SyntaxError):
        return error.lineno or 0
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
