"""The command line, taken apart: flags, and fields of the config."""

import difflib
import inspect
import os
import pathlib
import shlex
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from gptfl_jax import choices, configuration
from gptfl_jax.errors import UserError
from gptfl_jax.launch.config_files import Sections, read_config
from gptfl_jax.rules import is_utf8


class Command(NamedTuple):
    """A command line, taken apart but not yet applied."""

    config: str
    overrides: list[tuple[str, str]]
    workdir: pathlib.Path
    cpu_devices: int | None
    compilation_cache: bool
    dry_run: bool
    distributed: bool
    coordinator_address: str | None
    num_processes: int | None
    process_id: int | None
    heartbeat_timeout_s: int


def define_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "config",
        None,
        "Config file, or the name of one that comes with gptfl-jax, with an optional "
        "config string after a colon: configs/digits.py, digits, "
        "configs/digits.py:alpha=0.5,init=random.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "workdir", None, "Folder of all stages' files.", flag_values=values
    )
    flags.DEFINE_integer(
        "cpu_devices",
        None,
        "JAX devices to make of a CPU; default: one a core.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_bool(
        "compilation_cache",
        True,
        "Keep what is compiled for the next start, in the user's cache folder or that "
        "of GPTFL_CACHE_DIR or JAX_COMPILATION_CACHE_DIR; --nocompilation_cache: do "
        "not.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "dry_run",
        False,
        "Only say what the run would take: memory of a device, operations, steps. Data "
        "are read where they are there, weights are not; nothing is written to the "
        "workdir.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "distributed",
        None,
        "Start JAX on several processes, found by JAX itself (TPU pod, Slurm, Open "
        "MPI, Kubernetes). Implied by --coordinator_address and on a TPU pod.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "host:port of process 0, for several processes started by hand.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes",
        None,
        "How many processes there are.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "process_id",
        None,
        "Which of them this is, from 0.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "heartbeat_timeout_s",
        30,
        "Of several processes, one that gives no sign of life for so many seconds is "
        "lost, and the others stop.",
        lower_bound=1,
        flag_values=values,
    )
    return values


def read_command(argv: Sequence[str]) -> Command:
    """Takes a command line apart.

    Config overrides are parsed against the schema, not by absl, so that what they
    refuse reads the same as what a config file refuses.
    """
    overrides, others = take_overrides(argv)
    values = define_flags()
    _parse(values, others)
    for name in ("config", "workdir"):
        _require(values, name)
    by_hand = (values.coordinator_address, values.num_processes, values.process_id)
    if any(value is not None for value in by_hand) and None in by_hand:
        raise UserError(
            "--coordinator_address, --num_processes and --process_id go together: "
            "one of them is missing"
        )
    distributed = values.distributed
    if distributed is None:
        workers = os.environ.get("TPU_WORKER_HOSTNAMES", "")
        distributed = values.coordinator_address is not None or "," in workers
    return Command(
        config=values.config,
        overrides=overrides,
        workdir=pathlib.Path(values.workdir).expanduser(),
        cpu_devices=values.cpu_devices,
        compilation_cache=values.compilation_cache,
        dry_run=values.dry_run,
        distributed=distributed,
        coordinator_address=values.coordinator_address,
        num_processes=values.num_processes,
        process_id=values.process_id,
        heartbeat_timeout_s=values.heartbeat_timeout_s,
    )


def read_arguments(
    function: Callable, argv: Sequence[str]
) -> tuple[list[str], dict[str, Any]]:
    """What a command line gives a function: (by place, by name).

    A parameter whose default is a flag or a whole number is given one, every other a
    text. What is no flag goes to the parameter `*name` of the function, if it has one.

    Raises:
        UserError: a flag that is no parameter, or one that is missing.
    """
    known = choices.parameters(function)
    define = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer}
    values = flags.FlagValues()
    values.set_gnu_getopt()  # flags may stand behind other arguments
    for name, (default, _, help) in known.items():
        needed = default is inspect.Parameter.empty
        value = None if needed else default
        define.get(type(value), flags.DEFINE_string)(
            name, value, help, flag_values=values
        )
    rest = _parse(values, argv, takes_more=several(function) is not None)
    for name, (default, _, _) in known.items():
        if default is inspect.Parameter.empty or values[name].value:
            _require(values, name)
    return rest, {name: values[name].value for name in known}


def several(function: Callable) -> tuple[str, str] | None:
    """Name and help of the parameter `*name` of a function; None: it has none."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            return name, choices.help_texts(function).get(name, "")
    return None


def _parse(
    values: flags.FlagValues, argv: Sequence[str], takes_more: bool = False
) -> list[str]:
    """Sets flags; gives what is none, which is refused unless `takes_more`."""
    try:
        rest = values(["", *argv])[1:]
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        if name in dict(configuration.fields()):
            raise UserError(
                f"--{name}: no such flag; did you mean --config.{name}?"
            ) from None
        near = difflib.get_close_matches(name, list(values), n=1)
        hint = f"did you mean --{near[0]}?" if near else "see --help"
        raise UserError(f"--{name}: no such flag; {hint}") from None
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    if rest and not takes_more:
        hint = "see --help"
        if rest[0].partition(":")[0].endswith(".py") and "config" in list(values):
            hint = f"did you mean --config={rest[0]}?"
        raise UserError(f"unexpected argument {rest[0]!r}; {hint}")
    return rest


def _require(values: flags.FlagValues, name: str) -> None:
    if not values[name].value:
        raise UserError(f"--{name} is missing; see --help")
    if not is_utf8(str(values[name].value)):
        raise UserError(f"--{name}={values[name].value}: takes a name in UTF-8")


def take_overrides(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Splits `--config.a.b=value` and `--config.a.b value` from the other arguments.

    A bare `--config.a.b` sets a flag to True, `--noconfig.a.b` to False.
    """
    overrides, others = [], []
    remaining = list(argv)
    while remaining:
        argument = remaining.pop(0)
        name, equals, value = argument.lstrip("-").partition("=")
        is_flag = argument.startswith("-")
        if is_flag and name.startswith("config."):
            if not equals:
                follows = remaining and not remaining[0].startswith("--")
                value = remaining.pop(0) if follows else "True"
            overrides.append((name.removeprefix("config."), value))
        elif is_flag and name.startswith("noconfig.") and not equals:
            overrides.append((name.removeprefix("noconfig."), "False"))
        else:
            others.append(argument)
    return overrides, others


# Sections that several stages read.
_OF_ALL_STAGES = ("data", "model", "prompts")


def repeated(command: Command) -> str:
    """What the command of another stage repeats of this one, for a shell."""
    arguments = [f"--config={command.config}", f"--workdir={command.workdir}"]
    for field, value in command.overrides:
        section, dot, _ = field.partition(".")
        if not dot or section in _OF_ALL_STAGES:
            arguments.append(f"--config.{field}={value}")
    return shlex.join(arguments)


def configured(command: Command, sections: Sections) -> ConfigDict:
    """The checked config that a command line stands for."""
    config = read_config(command.config, sections)
    configuration.set_texts(config, command.overrides)
    configuration.validate(config)
    return config
