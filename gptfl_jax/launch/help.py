"""What `--help` says: the program, its flags, and the config fields it reads."""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence

from ml_collections import ConfigDict

from gptfl_jax import choices, configuration
from gptfl_jax.errors import ConfigError
from gptfl_jax.launch.command_line import (
    configured,
    define_flags,
    read_command,
    several,
)
from gptfl_jax.launch.config_files import Sections, installed_configs

_WAYS_TO_ASK = ("-h", "-help", "--help", "--helpfull", "--help=all")


def asked(argv: Sequence[str]) -> str:
    """How much help a command line asks for: "some", "all", or "" for none."""
    if "--help=all" in argv or "--helpfull" in argv:
        return "all"
    return "some" if any(argument in _WAYS_TO_ASK for argument in argv) else ""


def config_beside(argv: Sequence[str], sections: Sections) -> ConfigDict | None:
    """The config that is named beside --help, with its overrides; None: none is."""
    rest = [argument for argument in argv if argument not in _WAYS_TO_ASK]
    if not any(argument.lstrip("-").startswith("config") for argument in rest):
        return None
    if not any(argument.lstrip("-").startswith("workdir") for argument in rest):
        rest.append("--workdir=.")
    return configured(read_command(rest), sections)


def text(
    about: str,
    program: str,
    sections: Sections,
    config: ConfigDict | None = None,
    everything: bool = False,
) -> str:
    """What the program does, how it is called, and the fields it reads.

    Args:
        about: the program's docstring.
        config: whose values are shown, with the options of what it chooses; None: the
            defaults.
        everything: shows the options of every choice there is, not only of the chosen.
    """
    one_of_each = [(each,) if isinstance(each, str) else each for each in sections]
    # The example has the first of each choice.
    shown, sections = [each[0] for each in one_of_each], sum(one_of_each, ())
    about = textwrap.dedent(about).strip()
    command = f"python -m {program} --config=configs/digits.py --workdir=runs/digits"
    # Not every program goes with every config.
    if own := re.search(rf"python -m {re.escape(program)} --config=.*", about):
        command = own[0].rstrip("\\ ")
    lines = [
        about,
        "",
        "Example:",
        f"  {command} \\",
        f"      {example_override(shown)}",
        "",
        "Flags:",
    ]
    values = define_flags()
    for name in values:
        lines += _entry(f"--{name}", values[name].help)
    lines += ["", *textwrap.wrap(_introduction(config, everything), 88)]
    heading = ""
    read = dict(configuration.fields(*sections))
    for dotted, field in read.items():
        section = dotted.rpartition(".")[0]
        if config is not None and section and section not in config:
            continue  # the other of a choice
        if section != heading:
            heading = section
            lines.append("")
        value = _value(config, dotted, field.default)
        lines += _entry(f"{dotted} = {value!r}", f"{field.help}. Takes {field.takes}.")
    for dotted, field in read.items():
        if field.options_of is not None:
            lines += _options(field.options_of, read, config, dotted, everything)
    return "\n".join(lines)


def text_of_function(about: str, function: Callable) -> str:
    """What a program without a config does, and its flags.

    Args:
        about: the program's docstring.
        function: what it calls with its flags.
    """
    lines = [textwrap.dedent(about).strip(), ""]
    if more := several(function):
        name, help = more
        lines += ["Arguments:", *_entry(f"{name} ...", help), ""]
    lines.append("Flags:")
    for name, (default, _, help) in choices.parameters(function).items():
        needed = default is inspect.Parameter.empty
        lines += _entry(f"--{name}" if needed else f"--{name}={default}", help)
    return "\n".join(lines)


def _introduction(config: ConfigDict | None, everything: bool) -> str:
    values = (
        "their defaults (--help beside --config=<file> shows that file's)"
        if config is None
        else "the values of this config"
    )
    options = "" if everything else ", then the options of what they choose (--help=all"
    options += "" if everything else " shows those of all choices)"
    return (
        f"Config fields, each set as --config.<field>=<value>, with {values}{options}. "
        "Configs that come with gptfl-jax: "
        f"{', '.join(installed_configs()) or 'none'}."
    )


def _value(config: ConfigDict | None, dotted: str, default: object) -> object:
    if config is None:
        return default
    value = configuration.get(config, dotted)
    return value.to_dict() if isinstance(value, ConfigDict) else value


def _options(
    family: choices.Family,
    read: dict[str, configuration.Field],
    config: ConfigDict | None,
    dotted: str,
    everything: bool,
) -> Iterator[str]:
    """The options of the chosen, or of every, choice of a family."""
    section = dotted.rpartition(".")[0]
    if config is not None and section and section not in config:
        return
    chosen = _value(config, family.field, read[family.field].default)
    names = [chosen]
    if everything:
        names += [name for name in choices.available(family) if name != chosen]
    for name in names:
        try:
            function = choices.find(family, name)
        except ConfigError:  # of a default that is no name, as ""
            continue
        known = choices.options(family, function)
        yield ""
        none = "" if known else ": none"
        yield f"Options of {family.field} = {name!r}{none}"
        given = _value(config, dotted, {}) if name == chosen else {}
        for option, (default, rule, help) in known.items():
            value = given.get(option, default)
            shown = "" if value is inspect.Parameter.empty else f" = {value!r}"
            takes = f"Takes {rule.takes}." if rule else ""
            help = help if not help or help.endswith((".", "?")) else help + "."
            yield from _entry(f"{dotted}.{option}{shown}", f"{help} {takes}".strip())


def example_override(sections: Sequence[str]) -> str:
    """A field that an example of the command line can set."""
    for section in reversed(sections):  # the last one is the program's own
        for dotted, field in configuration.fields(section):
            if isinstance(field.default, int) and field.default > 1:
                return f"--config.{dotted}={field.default // 2}"
    return "--config.seed=1"


def _entry(name: str, text: str) -> list[str]:
    indent = " " * 6
    wrapped = textwrap.wrap(text, 88, initial_indent=indent, subsequent_indent=indent)
    return [f"  {name}", *wrapped]
