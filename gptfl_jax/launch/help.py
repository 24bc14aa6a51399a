"""What `--help` says: the program, its flags, and the config fields it reads."""

import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence

from ml_collections import ConfigDict

from gptfl_jax import choices, configuration
from gptfl_jax.errors import ConfigError, UserError
from gptfl_jax.launch.command_line import (
    configured,
    define_flags,
    read_command,
    several,
)
from gptfl_jax.launch.config_files import Sections, installed_configs

_WAYS_TO_ASK = ("-h", "-help", "--help")
_WIDTH = 80
COMMON, ALL = "common", "all"


def asked(argv: Sequence[str]) -> str:
    """What help a command line asks for.

    Returns:
        "common" for what is used most, "all" for everything, a word for the fields
        that have it in their names; "" for none.
    """
    for argument in argv:
        if argument in _WAYS_TO_ASK:
            return COMMON
        if argument == "--helpfull":
            return ALL
        if argument.startswith("--help="):
            return argument.partition("=")[2].removeprefix("config.") or COMMON
    return ""


def config_beside(argv: Sequence[str], sections: Sections) -> ConfigDict | None:
    """The config that is named beside --help, with its overrides; None: none is."""
    rest = [argument for argument in argv if not asked([argument])]
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
    which: str = COMMON,
    dry_run: bool = True,
) -> str:
    """What the program does, how it is called, and the fields it reads.

    Args:
        about: the program's docstring.
        config: whose values are shown; None: the defaults.
        which: as `asked` gives it. "common" shows the most used fields, and those that
            the config sets to something else than their default; "all" every field and
            the options of every choice.
        dry_run: whether the program takes the flag of this name.

    Raises:
        UserError: no field has the word in its name.
    """
    names = [(each,) if isinstance(each, str) else each for each in sections]
    read = {
        dotted: field
        for dotted, field in configuration.fields(*sum(names, ()))
        if _is_there(config, dotted)
    }
    if which not in (COMMON, ALL):
        return _of_word(which, program, read, config)
    about = textwrap.dedent(about).strip()
    lines = [about if which == ALL else _beginning(about), "", "Flags:"]
    values = define_flags()
    for name in values if which == ALL else ("config", "workdir", "dry_run"):
        if name == "dry_run" and not dry_run:
            continue
        lines += _entry(f"--{name}", values[name].help)
    told = read
    if which == COMMON:
        told = {
            dotted: field
            for dotted, field in read.items()
            if field.common or _value(config, dotted, field.default) != field.default
        }
    lines += ["", *textwrap.wrap(_introduction(config, which), _WIDTH)]
    lines += _fields(told, config, with_takes=which == ALL)
    if which == ALL:
        for dotted, field in read.items():
            if field.options_of is not None:
                lines += _options(field.options_of, read, config, dotted)
    else:
        lines += ["", *_more(read, config)]
    return "\n".join(lines)


def _beginning(about: str) -> str:
    """The first lines of a docstring: to its first paragraph, with a list behind it."""
    kept: list[str] = []
    paragraphs = 0  # beside the title
    for block in about.split("\n\n"):
        if block.startswith((" ", "- ")):
            kept.append(block)
            continue
        if paragraphs:
            break
        paragraphs += bool(kept)
        kept.append(textwrap.fill(block, _WIDTH, break_on_hyphens=False))
    return "\n\n".join(kept)


def _of_word(
    word: str,
    program: str,
    read: Mapping[str, configuration.Field],
    config: ConfigDict | None,
) -> str:
    """The fields, and options of choices, that have a word in their names."""
    found = {dotted: field for dotted, field in read.items() if word in dotted}
    lines = _fields(found, config)
    for dotted, field in read.items():
        family = field.options_of
        if family is None:
            continue
        option = word.removeprefix(f"{dotted}.")
        if dotted in found or family.field in found:
            option = ""
        lines += _options(family, read, config, dotted, option)
    if not lines:
        raise UserError(
            f"--help={word}: no field of {program} has this in its name; --help=all "
            "shows all"
        )
    return "\n".join(lines).strip("\n")


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


def _introduction(config: ConfigDict | None, which: str) -> str:
    values = (
        "with their defaults" if config is None else "with the values of this config"
    )
    if which == COMMON:
        kind = "The config fields that are used most,"
        if config is not None:
            kind += " and those that this config sets,"
    else:
        kind = "Config fields,"
    return (
        f"{kind} {values}; each is set as --config.<field>=<value>. Configs that come "
        f"with gptfl-jax: {', '.join(installed_configs()) or 'none'}."
    )


def _more(
    read: Mapping[str, configuration.Field], config: ConfigDict | None
) -> list[str]:
    own = [*read][-1].partition(".")[0]
    beside = "" if config else "; beside --config=<file>, that file's values"
    text = (
        f"There are {len(read)} fields. --help=all shows all of them, with what they "
        f"take, all flags and all options of choices; --help={own}, or any "
        f"other word, those that have it in their names{beside}."
    )
    return textwrap.wrap(text, _WIDTH)


def _is_there(config: ConfigDict | None, dotted: str) -> bool:
    """Whether a config has a field, which may be the other of a choice of sections."""
    section = dotted.rpartition(".")[0]
    return config is None or not section or section in config


def _fields(
    fields: Mapping[str, configuration.Field],
    config: ConfigDict | None,
    with_takes: bool = True,
) -> list[str]:
    """The entries of fields, a section after another."""
    lines, heading = [], ""
    for dotted, field in fields.items():
        section = dotted.rpartition(".")[0]
        if section != heading:
            heading = section
            lines.append("")
        value = repr(_value(config, dotted, field.default))
        text = field.help
        if with_takes:
            text += f". Takes {field.takes}."
        else:
            value = textwrap.shorten(
                value, _WIDTH - 4 - len(dotted), placeholder=" ..."
            )
            if field.chooses:
                text += f". One of {', '.join(choices.available(field.chooses))}"
        lines += _entry(f"{dotted} = {value}", text)
    return lines


def _value(config: ConfigDict | None, dotted: str, default: object) -> object:
    if config is None:
        return default
    value = configuration.get(config, dotted)
    return value.to_dict() if isinstance(value, ConfigDict) else value


def _options(
    family: choices.Family,
    read: Mapping[str, configuration.Field],
    config: ConfigDict | None,
    dotted: str,
    named: str = "",
) -> Iterator[str]:
    """The options of every choice of a family, the chosen one first.

    Args:
        named: only options of this name, and no choice without it; empty: all.
    """
    chosen = _value(config, family.field, read[family.field].default)
    names = [chosen]
    names += [name for name in choices.available(family) if name != chosen]
    for name in names:
        try:
            function = choices.find(family, name)
        except ConfigError:  # of a default that is no name, as ""
            continue
        known = choices.options(family, function)
        if named:
            known = {option: of for option, of in known.items() if option == named}
            if not known:
                continue
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


def _entry(name: str, text: str) -> list[str]:
    indent = " " * 6
    wrapped = textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent
    )
    return [f"  {name}", *wrapped]
