"""The start of every program: flags, config, processes, devices, errors.

A program is a module with

    def run(config: ConfigDict, workdir: pathlib.Path) -> None:
        prepare(config)
        ...

    def main() -> None:
        launch(run, ("data", "train"))

Its module docstring is what `--help` says it does. `run` can be called from Python,
too: `prepare` does there what the command line does. A program without a config has
flags of its own (`launch_function`).
"""

import contextlib
import errno
import functools
import gc
import json
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from gptfl_jax import compilation_cache, configuration, interruption
from gptfl_jax.errors import UserError
from gptfl_jax.launch import help
from gptfl_jax.launch.command_line import (
    Command,
    configured,
    read_arguments,
    read_command,
    repeated,
)
from gptfl_jax.launch.config_files import (
    Sections,
    find_config,
    installed_configs,
    read_config,
)
from gptfl_jax.launch.processes import agree, go_on_in_a_child, stopping_together
from gptfl_jax.launch.streams import Plain, Unbroken, printable

__all__ = [
    "agree",
    "find_config",
    "installed_configs",
    "launch",
    "launch_function",
    "prepare",
    "printable",
    "read_config",
    "setup",
]


def launch(
    run: Callable[[ConfigDict, pathlib.Path], None],
    sections: Sections,
    argv: Sequence[str] | None = None,
    dry_run: Callable[[ConfigDict, pathlib.Path], None] | None = None,
    then: Callable[[ConfigDict, pathlib.Path], str] | None = None,
) -> None:
    """Runs a program: command line, check of the config, start of JAX, `run`.

    An error that the user can mend is printed as one line and ends the process with
    exit code 2; Ctrl-C ends it with 130, SIGTERM with 143. Of several processes, the
    loss of one ends the others with a line and exit code 3. Any other error is a fault
    of the program and keeps its traceback.

    Args:
        run: what to do, given the checked config and the work folder.
        sections: the sections of `configuration.SCHEMA` that `run` reads; a tuple
            among them is a choice of one.
        argv: the command line without the program's name; None: that of the process.
        dry_run: what to do in place of `run` under --dry_run; None: it is refused.
        then: the command that comes next, said at the end: `{same}` in it stands for
            the config, the workdir and what of the config other programs read as well;
            empty: nothing. None: nothing ever.
    """
    program = _program_name(run)
    argv = sys.argv[1:] if argv is None else list(argv)
    with _ended_by_a_line(program):
        _run(run, dry_run, then, program, sections, argv)


def launch_function(
    run: Callable[..., None], argv: Sequence[str] | None = None
) -> None:
    """Runs a program that needs no config: its flags are what a function takes.

    A flag's default is the parameter's, and its help stands under `Args:`. What is no
    flag goes to a parameter `*name`. Errors end it as in `launch`.

    Args:
        run: takes texts, and where the default is one a flag or a whole number.
        argv: the command line without the program's name; None: that of the process.
    """
    program = _program_name(run)
    argv = sys.argv[1:] if argv is None else list(argv)
    with _ended_by_a_line(program):
        if help.asked(argv):
            about = sys.modules[run.__module__].__doc__ or ""
            print(help.text_of_function(about, run))
            return
        by_place, by_name = read_arguments(run, argv)
        with interruption.watched(program):
            _quieten()
            run(*by_place, **by_name)


@contextlib.contextmanager
def _ended_by_a_line(program: str) -> Iterator[None]:
    """Ends the process as `launch` says, where what is done within fails."""
    with (
        contextlib.redirect_stdout(Plain(sys.stdout)),
        contextlib.redirect_stderr(Unbroken(sys.stderr)),
    ):
        try:
            yield
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
        finally:
            sys.stdout.flush()  # at exit Python minds that nobody reads


_OF_PATHS = {errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM}


def _short(path: Any) -> str:
    text = os.fsdecode(path)
    return text if len(text) <= 160 else f"{text[:140]}... ({len(text):,} letters)"


def _run(
    run: Callable,
    dry_run: Callable | None,
    then: Callable[[ConfigDict, pathlib.Path], str] | None,
    program: str,
    sections: Sections,
    argv: list[str],
) -> None:
    """Do what a command line asks for."""
    asked = help.asked(argv)
    if asked:
        about = sys.modules[run.__module__].__doc__ or ""
        config = help.config_beside(argv, sections)
        takes = dry_run is not None
        print(help.text(about, program, sections, config, asked, takes))
        return
    command = read_command(argv)
    if command.dry_run and dry_run is None:
        raise UserError("--dry_run: this program takes none; leave it out")
    config = configured(command, sections)
    if command.distributed:
        go_on_in_a_child(program)
    with interruption.watched(program):
        _trace_sooner()
        _start_jax(command, config)
        kept_in = _start_compilation_cache(command)
        with stopping_together(program, command.heartbeat_timeout_s):
            _announce(program, command)
            if jax.process_index() == 0:
                print(f"{program}: compilation cache: {kept_in}", flush=True)
            agree(
                json.dumps([program, config.to_dict()], default=str).encode(),
                "was started with another config than process 0: start the same "
                "command, with the same files, on all hosts",
            )
            (dry_run if command.dry_run else run)(config, command.workdir)
            if then and not command.dry_run and jax.process_index() == 0:
                text = then(config, command.workdir)
                if text:
                    print(f"next: {text.replace('{same}', repeated(command))}")


def prepare(config: ConfigDict) -> None:
    """Checks a config and sets JAX up for it: what every `run` does first.

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
    _use_all_cores()
    _compile_sooner()


def setup() -> None:
    """Sets JAX up for a notebook or script as the programs do for themselves.

    A CPU has a device of every core, so that a cohort or a batch is split over them,
    and what XLA compiles is kept on disk for the next start. For this to count, JAX
    must not have been used before; devices it has already made stay as they are. Nor is
    compilation then quicker, as `XLA_FLAGS` makes it.
    """
    _quieten()
    _use_all_cores()
    _compile_sooner()
    _trace_sooner()
    compilation_cache.start()


def _use_all_cores() -> None:
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices < 1 and not forced:
        with contextlib.suppress(RuntimeError):  # JAX has started
            jax.config.update("jax_num_cpu_devices", _usable_cores())


def _compile_sooner() -> None:
    """Has XLA leave loops as they are, if it has not started.

    Unrolling them took a quarter of the time in which training programs are compiled,
    and their steps are as fast without. An XLA that knows no such option passes over
    it, as its name begins with "xla_".
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _EXTRA_OPTIONS not in flags:
        option = f"{_EXTRA_OPTIONS}=xla_cpu_disable_loop_unrolling"
        os.environ["XLA_FLAGS"] = f"{flags} {option}".strip()


_EXTRA_OPTIONS = "--xla_backend_extra_options"


def _trace_sooner() -> None:
    """Has Python look through less, and less often, for garbage.

    While JAX traced, which makes many small objects, a fifth of the time went into
    looking through all that was imported, again and again.
    """
    gc.freeze()
    gc.set_threshold(20_000, *gc.get_threshold()[1:])


def _quieten() -> None:
    """Silences what the libraries below say beside their exceptions."""
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


def _program_name(run: Callable) -> str:
    module = sys.modules[run.__module__]
    spec = getattr(module, "__spec__", None)
    if spec is not None:
        return spec.name
    return pathlib.Path(sys.argv[0]).stem


def _start_jax(command: Command, config: ConfigDict) -> None:
    """Sets what must be set before the first use of a device, and joins the others."""
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


def _start_compilation_cache(command: Command) -> str:
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


def _devices() -> list[jax.Device]:
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = jax.config.jax_platforms
        if not asked:
            raise
        raise UserError(
            f"JAX has no device of JAX_PLATFORMS={asked}: unset it to take what there "
            "is, or install JAX's package for it, as pip install 'jax[cuda12]'"
        ) from error


def _announce(program: str, command: Command) -> None:
    """The first line: what runs, on which devices and processes."""
    devices = _devices()
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
