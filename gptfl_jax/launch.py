"""The start of every program: flags, config, processes, devices, errors.

A program is a module with

    def run(config: ConfigDict, workdir: pathlib.Path) -> None:
        prepare(config)
        ...

    def main() -> None:
        launch(run, ("data", "train"))

Its module docstring is what `--help` says it does. `run` can be called from Python,
too: `prepare` does there what the command line does.
"""

import contextlib
import ctypes
import difflib
import errno
import functools
import importlib.util
import io
import json
import linecache
import os
import pathlib
import re
import signal
import sys
import textwrap
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags, logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from gptfl_jax import compilation_cache, configuration, interruption
from gptfl_jax.errors import ConfigError, UserError, unknown
from gptfl_jax.rules import is_utf8

_PACKAGE = pathlib.Path(__file__).parent
# A wheel carries the config files in the package; a checkout has them beside it.
_INSTALLED_CONFIGS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")

# Names of sections, with tuples of those that a config has one of.
Sections = Sequence[str | tuple[str, ...]]


class _Command(NamedTuple):
    """A command line, taken apart but not yet applied."""

    config: str
    overrides: list[tuple[str, str]]
    workdir: pathlib.Path
    cpu_devices: int | None
    compilation_cache: bool
    distributed: bool
    coordinator_address: str | None
    num_processes: int | None
    process_id: int | None
    heartbeat_timeout_s: int


def launch(
    run: Callable[[ConfigDict, pathlib.Path], None],
    sections: Sections,
    argv: Sequence[str] | None = None,
) -> None:
    """Run a program: read the command line, check the config, start JAX, call `run`.

    An error that the user can mend is printed as one line and ends the process with
    exit code 2; Ctrl-C ends it with 130, SIGTERM with 143. Of several processes, the
    loss of one ends the others with a line and exit code 3. Any other error is a fault
    of the program and keeps its traceback.

    Args:
        run: what to do, given the checked config and the work folder.
        sections: the sections of `configuration.SCHEMA` that `run` reads; a tuple
            among them is a choice of one.
        argv: the command line without the program's name; None: that of the process.
    """
    program = _program_name(run)
    argv = sys.argv[1:] if argv is None else list(argv)
    with contextlib.redirect_stdout(_Plain(sys.stdout)):
        try:
            _run(run, program, sections, argv)
        except UserError as error:
            print(printable(f"{program}: {error}"), file=sys.stderr)
            _leave(2)
        except OSError as error:
            # Of a path of the user's, which may be read anywhere.
            if error.errno not in _OF_PATHS or error.filename is None:
                raise
            text = f"{program}: {_short(error.filename)}: {error.strerror}"
            print(printable(text), file=sys.stderr)
            _leave(2)
        except Exception:
            if not jax.distributed.is_initialized():
                raise
            traceback.print_exc()
            _leave(1)
        except KeyboardInterrupt as error:
            saved = f"; {error}" if str(error) else ""
            print(printable(f"{program}: interrupted{saved}"), file=sys.stderr)
            _leave(interruption.exit_code())


_OF_PATHS = {errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM}


def _short(path: Any) -> str:
    text = os.fsdecode(path)
    return text if len(text) <= 160 else f"{text[:140]}... ({len(text):,} letters)"


def _run(run: Callable, program: str, sections: Sections, argv: list[str]) -> None:
    """Do what a command line asks for."""
    if any(argument in ("-h", "--help", "-help", "--helpfull") for argument in argv):
        print(_help(run, program, sections, _config_of_help(argv, sections)))
        return
    command = _read_command(argv)
    config = _configured(command, sections)
    if command.distributed:
        _go_on_in_a_child(program)
    with interruption.watched(program):
        _start_jax(command, config)
        kept_in = _start_compilation_cache(command)
        with _stopping_together(program, command.heartbeat_timeout_s):
            _announce(program, command)
            if jax.process_index() == 0:
                print(f"{program}: compilation cache: {kept_in}", flush=True)
            agree(
                json.dumps([program, config.to_dict()], default=str).encode(),
                "was started with another config than process 0: start the same "
                "command, with the same files, on all hosts",
            )
            run(config, command.workdir)


def prepare(config: ConfigDict) -> None:
    """Check a config and set JAX up for it: what every `run` does first.

    JAX makes a device of every core, unless it has started or was told otherwise.

    Raises:
        ConfigError: as `configuration.validate`.
    """
    configuration.validate(config)
    _quieten()
    dtypes = (
        config[section].get("dtype")
        for section in config.keys()
        if isinstance(config[section], ConfigDict)
    )
    if "float64" in dtypes:
        jax.config.update("jax_enable_x64", True)
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices < 1 and not forced:
        with contextlib.suppress(RuntimeError):  # JAX has started
            jax.config.update("jax_num_cpu_devices", _usable_cores())


def _quieten() -> None:
    """Silence what the libraries below say beside their exceptions."""
    # What orbax logs as an error it raises as well, and then we say it. transformers
    # advises to install torch, which we do without on purpose.
    logging.set_verbosity(logging.FATAL)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if not isinstance(sys.unraisablehook, functools.partial):
        sys.unraisablehook = functools.partial(_without_echoes, sys.unraisablehook)


def _leave(code: int) -> None:
    """Exit; of several processes also when the others wait at a barrier."""
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized():
        # The shutdown at exit waits for all processes, which may never come to theirs.
        os._exit(code)
    raise SystemExit(code)


def agree(value: bytes, complaint: str) -> None:
    """Make sure that all processes hold the same value.

    Raises:
        UserError: in all of them, one does not: "process <k> <complaint>".
    """
    if jax.process_count() == 1:
        return
    values = multihost_utils.process_allgather(np.uint32(zlib.crc32(value)))
    if (values != values[0]).any():
        raise UserError(f"process {np.argmax(values != values[0])} {complaint}")


def _program_name(run: Callable) -> str:
    module = sys.modules[run.__module__]
    spec = getattr(module, "__spec__", None)
    if spec is not None:
        return spec.name
    return pathlib.Path(sys.argv[0]).stem


# Command line -----------------------------------------------------------------------


def _define_flags() -> flags.FlagValues:
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
        "of JAX_COMPILATION_CACHE_DIR; --nocompilation_cache: do not.",
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


def _read_command(argv: Sequence[str]) -> _Command:
    """Take a command line apart.

    Config overrides are parsed against the schema, not by absl, so that what they
    refuse reads the same as what a config file refuses.
    """
    overrides, others = _take_overrides(argv)
    values = _define_flags()
    try:
        rest = values(["", *others])[1:]
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        near = difflib.get_close_matches(name, list(values), n=1)
        hint = f"did you mean --{near[0]}?" if near else "see --help"
        raise UserError(f"--{name}: no such flag; {hint}") from None
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; see --help")
    for name in ("config", "workdir"):
        if not values[name].value:
            raise UserError(f"--{name} is missing; see --help")
        if not is_utf8(values[name].value):
            raise UserError(f"--{name}={values[name].value}: takes a name in UTF-8")
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
    return _Command(
        config=values.config,
        overrides=overrides,
        workdir=pathlib.Path(values.workdir).expanduser(),
        cpu_devices=values.cpu_devices,
        compilation_cache=values.compilation_cache,
        distributed=distributed,
        coordinator_address=values.coordinator_address,
        num_processes=values.num_processes,
        process_id=values.process_id,
        heartbeat_timeout_s=values.heartbeat_timeout_s,
    )


def _take_overrides(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Split `--config.a.b=value` and `--config.a.b value` from the other arguments.

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


def _configured(command: _Command, sections: Sections) -> ConfigDict:
    """The checked config that a command line stands for."""
    config = read_config(command.config, sections)
    for dotted, text in command.overrides:
        configuration.set_text(config, dotted, text)
    configuration.validate(config)
    return config


# Output -----------------------------------------------------------------------------

# Control characters but for tabs and the ends of lines: a terminal obeys them.
_CONTROLS = {
    code: f"\\x{code:02x}"
    for code in (*range(0x20), *range(0x7F, 0xA0))
    if chr(code) not in "\t\n\r"
}


def printable(text: str) -> str:
    """A text that may hold names from files and servers, harmless to a terminal."""
    text = text.translate(_CONTROLS)
    return text.encode(errors="backslashreplace").decode()


class _Plain:
    """A text stream on which every text is `printable`."""

    def __init__(self, stream: Any):
        self._stream = stream
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):
            # Not every terminal can show every name.
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        return self._stream.write(printable(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


# Config files -----------------------------------------------------------------------


def read_config(argument: str, sections: Sections = ()) -> ConfigDict:
    """Load `path_or_name[:config string]`.

    A path that does not exist here is looked for among the configs that come with
    gptfl-jax, by its last part, so that `digits` and `configs/digits.py` mean the same
    file in any folder.

    Raises:
        ConfigError: no such file, no `get_config` in it, a config it could not build,
            or one that lacks a section of `sections`.
    """
    name, _, arg = argument.partition(":")
    path = _find_config(name)
    # A name of its own: two config files may both be called digits.py.
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
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
                f"{path} has no section {listed}, which this program needs"
                if not any(name in config for name in names)
                else f"{path} has the sections {listed}: this program takes one"
            )
    return config


def _find_config(name: str) -> pathlib.Path:
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
        return f"{where}: {unknown(name, known, prefix=True)}"
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


# JAX --------------------------------------------------------------------------------


def _start_jax(command: _Command, config: ConfigDict) -> None:
    """Set what must be set before the first use of a device, and join the others."""
    if command.cpu_devices is not None:
        try:
            jax.config.update("jax_num_cpu_devices", command.cpu_devices)
        except RuntimeError:
            # The devices are there already: launch() was called from a program.
            raise UserError(
                f"--cpu_devices={command.cpu_devices}: JAX has started already"
            ) from None
    prepare(config)
    if command.distributed:
        # It would catch SIGTERM, to save what we have saved anyway, and live on.
        jax.config.update("jax_enable_preemption_service", False)
        try:
            jax.distributed.initialize(
                coordinator_address=command.coordinator_address,
                num_processes=command.num_processes,
                process_id=command.process_id,
                heartbeat_timeout_seconds=command.heartbeat_timeout_s,
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"JAX could not join the other processes: {error}"
            ) from error


def _start_compilation_cache(command: _Command) -> str:
    """Where compiled code is kept, or why it is not."""
    if command.compilation_cache:
        return compilation_cache.start()
    jax.config.update("jax_enable_compilation_cache", False)
    return "off"


def _without_echoes(report: Callable, unraisable: Any) -> None:
    """`sys.unraisablehook` but for what was said already.

    orbax ends its event loop at the first write that fails, as on a full disk, and
    raises that error. Every later one then finds the loop closed, in C++.
    """
    error = unraisable.exc_value
    if isinstance(error, RuntimeError) and str(error) == "Event loop is closed":
        return
    report(unraisable)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _announce(program: str, command: _Command) -> None:
    """The first line: what runs, on which devices and processes."""
    devices = jax.devices()
    kind = devices[0].device_kind
    if kind.lower() == devices[0].platform:
        kind = kind.upper()
    where = f"{len(devices)} {kind} device" + ("s" if len(devices) > 1 else "")
    processes = jax.process_count()
    if processes > 1:
        where += f" in {processes} processes, this is process {jax.process_index()}"
    print(
        f"{program}: {command.config} -> {command.workdir}, on {where}",
        flush=True,
    )


# Lost processes ---------------------------------------------------------------------

# When a process is lost, JAX's coordination service tells the others, and its C++ code
# aborts them with a stack trace: Python cannot step in. So the work is done in a child,
# and its parent says in a line what has happened.

_LOST = 3
"""Exit code of a process that stops because another one was lost."""

_FROM_SERVICE = re.compile(r"[EF]\d{4} .*(coordination_service|client\.h)")
_ABORTED = "the JAX distributed service detected fatal errors"
_NO_HEARTBEAT = re.compile(r"stopped sending heartbeats\):\s*([\d,\s]*\d)")
_NEVER_MET = "CoordinationService/RegisterTask"
# How an error of a collective operation, or of waiting for the others, begins.
_BROKEN_OFF = re.compile(
    r"(UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|CANCELLED|ABORTED|"
    r"FAILED_PRECONDITION): "
)


def _go_on_in_a_child(program: str) -> None:
    """Fork. The child returns; the parent waits for it, explains its end, and exits."""
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        # A group of its own: the parent passes Ctrl-C on, and it comes once.
        os.setpgid(0, 0)
        _end_with(parent)
        # The parent reads what C++ code writes; Python's lines take the direct way.
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
        os.dup2(write, 2)
        os.close(read)
        os.close(write)
        return
    os.close(write)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: os.kill(child, number))
    with open(read, errors="replace") as stream:
        said = _pass_on(stream)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGABRT and _ABORTED in said:
        print(f"{program}: {_explain_loss(said)}", file=sys.stderr, flush=True)
        os._exit(_LOST)
    sys.stderr.write(said)
    if code < 0:
        ended_by = signal.Signals(-code).name
        print(f"{program}: ended by {ended_by}", file=sys.stderr)
        code = 128 - code
    sys.stderr.flush()
    os._exit(code)


def _end_with(parent: int) -> None:
    """Be killed when the parent is, where the system offers that (Linux)."""
    with contextlib.suppress(AttributeError):
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def _pass_on(stream: io.TextIOBase) -> str:
    """Write the lines to stderr, up to the first complaint of the service.

    Returns:
        The rest: what matters of it is clear when the child has ended.
    """
    for line in stream:
        if _FROM_SERVICE.match(line):
            return line + stream.read()
        sys.stderr.write(line)
        sys.stderr.flush()
    return ""


def _explain_loss(said: str) -> str:
    if _NEVER_MET in said:
        return (
            "the processes did not find each other within 5 minutes: start all of "
            "them, and check that --coordinator_address is right and can be reached "
            "from all hosts"
        )
    found = _NO_HEARTBEAT.search(said)
    if found:
        lost = re.findall(r"\d+", found[1])
        who = f"process {lost[0]} was"
        if len(lost) > 1:
            who = f"processes {', '.join(lost)} were"
    else:
        who = "process 0, through which all keep in touch, was"
    return (
        f"{who} lost: killed, crashed, hanging or cut off from the network. Its own "
        "output may say why. Start the same command again on all hosts: the run goes "
        "on from what it has saved last"
    )


@contextlib.contextmanager
def _stopping_together(program: str, heartbeat_timeout_s: int) -> Iterator[None]:
    """Hold an error back until it is clear whether a lost process is behind it.

    The processes next to a lost one in a collective operation see a broken connection
    at once, the service misses a heartbeat after a while. If it does, it aborts us.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        if _broken_off(error):
            patience_s = heartbeat_timeout_s + 15
            print(
                f"{program}: the connection to another process broke off; waiting up "
                f"to {patience_s} s to learn which",
                file=sys.stderr,
            )
            time.sleep(patience_s)
        elif jax.process_index() == 0:
            # With it goes the service, and the others would take it for lost. Let them
            # first say why they stop: often for the same reason.
            time.sleep(3)
        raise


def _broken_off(error: BaseException | None) -> bool:
    """Whether an error comes from talking with other processes."""
    while error is not None:
        of_jax = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
        if of_jax and _BROKEN_OFF.match(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


# Help -------------------------------------------------------------------------------


def _config_of_help(argv: Sequence[str], sections: Sections) -> ConfigDict | None:
    """The config that is named beside --help, with its overrides; None: none is."""
    asked = ("-h", "--help", "-help", "--helpfull")
    rest = [argument for argument in argv if argument not in asked]
    if not any(argument.lstrip("-").startswith("config") for argument in rest):
        return None
    if not any(argument.lstrip("-").startswith("workdir") for argument in rest):
        rest.append("--workdir=.")
    return _configured(_read_command(rest), sections)


def _help(
    run: Callable,
    program: str,
    sections: Sections,
    config: ConfigDict | None = None,
) -> str:
    """What the program does, how it is called, and the fields it reads.

    Args:
        config: whose values are shown; None: the defaults.
    """
    from gptfl_jax.data import sources  # slow to import, and it needs this package

    choices = [(each,) if isinstance(each, str) else each for each in sections]
    # The example has the first of each choice.
    chosen, sections = [each[0] for each in choices], sum(choices, ())
    about = textwrap.dedent(sys.modules[run.__module__].__doc__ or "").strip()
    command = f"python -m {program} --config=configs/digits.py --workdir=runs/digits"
    # Not every program goes with every config.
    if own := re.search(rf"python -m {re.escape(program)} --config=.*", about):
        command = own[0]
    lines = [
        about,
        "",
        "Example:",
        f"  {command} \\",
        f"      {_example_override(chosen)}",
        "",
        "Flags:",
    ]
    values = _define_flags()
    for name in values:
        lines += _entry(f"--{name}", values[name].help)
    lines += [
        "",
        *textwrap.wrap(
            "Config fields, each set as --config.<field>=<value>, with "
            + (
                "their defaults (--help beside --config=<file> shows that file's)"
                if config is None
                else "the values of this config"
            )
            + ". Configs that come with gptfl-jax: "
            + (", ".join(installed_configs()) or "none")
            + ".",
            88,
        ),
    ]
    heading = ""
    for dotted, field in configuration.fields(*sections):
        section = dotted.rpartition(".")[0]
        if config is not None and section and section not in config:
            continue  # the other of a choice
        if section != heading:
            heading = section
            lines.append("")
        takes = field.takes
        if dotted == "data.source":
            takes = f"one of {', '.join(sources.available())}"
        text = f"{field.help}. Takes {takes}."
        value = field.default
        if config is not None:
            value = configuration.get(config, dotted)
            value = value.to_dict() if isinstance(value, ConfigDict) else value
        lines += _entry(f"{dotted} = {value!r}", text)
    return "\n".join(lines)


def _example_override(sections: Sequence[str]) -> str:
    for section in reversed(sections):  # the last one is the program's own
        for dotted, field in configuration.fields(section):
            if isinstance(field.default, int) and field.default > 1:
                return f"--config.{dotted}={field.default // 2}"
    return "--config.seed=1"


def _entry(name: str, text: str) -> list[str]:
    indent = " " * 6
    wrapped = textwrap.wrap(text, 88, initial_indent=indent, subsequent_indent=indent)
    return [f"  {name}", *wrapped]
