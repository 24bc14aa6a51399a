import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from gptfl_jax import configuration, launch
from gptfl_jax.errors import ConfigError, UserError
from gptfl_jax.launch import command_line, processes
from tests.own_config import CONFIG
from tests.programs import Programs
from train import generator

PROGRAM = '''\
"""Say what was asked.

It does nothing else.
"""

import sys
import time

from gptfl_jax import artifacts
from gptfl_jax.errors import UserError
from gptfl_jax.launch import launch


def run(config, workdir):
    import jax

    if config.seed == 13:
        raise UserError("no luck with 13")
    if config.seed == 14:
        raise KeyboardInterrupt
    if config.seed == 15:
        raise ZeroDivisionError
    if config.seed == 16:
        with artifacts.lock(workdir):
            print("locked")
        return
    if config.seed == 17:
        print("waiting", flush=True)
        time.sleep(600)
    if config.seed == 18:
        print("a red \\x1b[31mcat\\x9b of caf\\udce9")
        raise UserError("no \\x1b[31mcat")
    if config.seed == 19:
        type(workdir)("a" * 300).stat()
    federated = config.federated
    print("run", federated.rounds, federated.client_learning_rate, workdir)
    print("devices", jax.local_device_count(), jax.device_count())
    print("dtype", jax.numpy.zeros(1, float).dtype)


def dry_run(config, workdir):
    print("would run", config.federated.rounds, "rounds")


def main():
    launch(run, ("data", "federated"), dry_run=dry_run)


if __name__ == "__main__":
    main()
'''

NO_FOLDER = (
    "cannot write to /proc/x: no such file or directory. Choose another --workdir"
)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "echo.py").write_text(PROGRAM)
    (tmp_path / "mine.py").write_text(CONFIG)
    return tmp_path


@pytest.fixture(autouse=True)
def heeds_sigint():
    """A program started by one that ignores Ctrl-C, as under nohup, ignores it too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(folder: pathlib.Path, *arguments: str, **environment: str):
    clean = {name: os.environ[name] for name in os.environ if name != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, "-m", "echo", *arguments],
        cwd=folder,
        env={**clean, "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(process) -> tuple[int, str, str]:
    try:
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """As `start`, of processes that share the imports: gives their `outcome`."""
    place = tmp_path_factory.mktemp("echo")
    what_configs_read = "import federated.simulate"
    program = PROGRAM.replace("import sys", f"{what_configs_read}\nimport sys")
    (place / "echo.py").write_text(program)
    output, errors = place / "output", place / "errors"
    programs = Programs("echo", place, output, errors)

    def run(folder, *arguments):
        code = programs.run(*arguments, folder=folder)
        return code, output.read_text(), errors.read_text()

    yield run
    programs.close()


def command(*arguments: str) -> command_line.Command:
    return command_line.read_command(["--config=c", "--workdir=w", *arguments])


def refusal(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return str(caught.value)


# Programs, as a user starts them


def test_runs_a_program_and_says_where_first(folder):
    code, output, errors = outcome(
        start(
            folder,
            "--config=mine.py:rate=0.25",
            "--workdir=runs/x",
            "--config.federated.dtype=float64",
            "--cpu_devices=3",
        )
    )
    assert (code, errors) == (0, "")
    assert output.splitlines() == [
        "echo: mine.py:rate=0.25 -> runs/x, on 3 CPU devices",
        f"echo: compilation cache: {os.environ['JAX_COMPILATION_CACHE_DIR']}",
        f"run 7 0.25 {pathlib.Path('runs/x')}",
        "devices 3 3",
        "dtype float64",
    ]


def test_makes_a_device_of_every_core(folder):
    arguments = ("--config", "mine.py", "--workdir", "w", "--nocompilation_cache")
    overrides = ("--config.federated.rounds", "9")
    code, output, errors = outcome(start(folder, *arguments, *overrides))
    assert (code, errors) == (0, "")
    cores = len(os.sched_getaffinity(0))
    assert output.splitlines()[1:] == [
        "echo: compilation cache: off",
        "run 9 0.1 w",
        f"devices {cores} {cores}",
        "dtype float32",
    ]


def test_a_notebook_is_set_up_as_the_programs_are(tmp_path):
    code = (
        "import gptfl_jax as gf; gf.setup(); import jax; "
        "print(jax.device_count(), jax.config.jax_compilation_cache_dir)"
    )
    others = ("JAX_", "XLA_", "GPTFL_")
    known = {k: v for k, v in os.environ.items() if not k.startswith(others)}
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=known | {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert said[0] == str(len(os.sched_getaffinity(0)))
    assert pathlib.Path(said[1]).is_dir() and said[1].startswith(str(tmp_path))


def test_xla_flags_have_the_say_over_devices(folder):
    flags = "--xla_force_host_platform_device_count=5"
    process = start(folder, "--config=mine.py", "--workdir=w", XLA_FLAGS=flags)
    code, output, _ = outcome(process)
    assert code == 0
    assert "on 5 CPU devices" in output


@pytest.mark.parametrize("of_user", ["", "--xla_backend_extra_options=xla_cpu_theirs"])
def test_xla_is_told_before_it_starts_to_leave_loops_as_they_are(of_user):
    """What it makes of such a loop is shorter then."""
    program = """
import os, sys
import jax, jax.numpy as jnp
from gptfl_jax import launch
jax.config.update("jax_enable_compilation_cache", False)
if sys.argv[1:]:
    launch.setup()
x = jax.ShapeDtypeStruct((4096, 33), jnp.float32)
differences = lambda x: jnp.concatenate([x[1:] * 2 + x[:-1], x[2:] - x[:-2]])
compiled = jax.jit(differences).lower(x).compile()
print(len(compiled.runtime_executable().serialize()))
print(os.environ["XLA_FLAGS"])
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": of_user}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        size, flags = done.stdout.splitlines()
        return int(size), flags

    before, _ = run()
    after, flags = run("set up")
    if of_user:
        assert (after, flags) == (before, of_user)
    else:
        assert after < 0.95 * before


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (
            ["--config.federated.round=5"],
            2,
            "echo: config.federated.round: no such field; did you mean "
            "config.federated.rounds?\n",
        ),
        (["--config.seed=13"], 2, "echo: no luck with 13\n"),
        (
            ["--config.seed=14"],
            130,
            "echo: interrupted\n",
        ),
        (
            ["--config.seed=19"],
            2,
            f"echo: {'a' * 140}... (300 letters): File name too long\n",
        ),
        (["--workdir=/proc/x", "--config.seed=16"], 2, f"echo: {NO_FOLDER}\n"),
        (
            [f"--config.seed={10**23}"],
            2,
            f"echo: config.seed = {10**23}: takes a whole number >= 0 and < 2**32\n",
        ),
        (
            ["--workdir=caf\udce9"],
            2,
            "echo: --workdir=caf\\udce9: takes a name in UTF-8\n",
        ),
    ],
)
def test_a_users_error_is_one_line(echo, folder, arguments, code, says):
    found, output, errors = echo(folder, "--config=mine.py", "--workdir=w", *arguments)
    assert (found, errors) == (code, says)
    assert "run " not in output


def test_names_do_not_command_the_terminal(folder):
    arguments = ("--config=mine.py", "--workdir=w", "--config.seed=18")
    for encoding in ("utf-8", "ascii"):
        process = start(folder, *arguments, PYTHONIOENCODING=encoding)
        code, output, errors = outcome(process)
        assert code == 2
        assert output.splitlines()[2:] == [r"a red \x1b[31mcat\x9b of caf\udce9"]
        assert errors == "echo: no \\x1b[31mcat\n"


def test_devices_that_are_not_there_are_a_users_error(folder):
    process = start(folder, "--config=mine.py", "--workdir=w", JAX_PLATFORMS="tpv")
    code, output, errors = outcome(process)
    assert (code, output) == (2, "")
    assert errors.startswith("echo: JAX has no device of JAX_PLATFORMS=tpv: unset it")


def test_a_fault_of_the_program_keeps_its_traceback(folder):
    arguments = ("--config=mine.py", "--workdir=w", "--config.seed=15")
    code, _, errors = outcome(start(folder, *arguments))
    assert code == 1
    assert "Traceback" in errors and "ZeroDivisionError" in errors


def start_together(folder, *each):
    """One process for each of the command lines."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = server.getsockname()[1]
    return [
        start(
            folder,
            "--config=mine.py",
            "--cpu_devices=2",
            f"--coordinator_address=localhost:{port}",
            f"--num_processes={len(each)}",
            f"--process_id={index}",
            *arguments,
        )
        for index, arguments in enumerate(each)
    ]


def test_several_processes_started_by_hand(folder):
    processes = start_together(folder, ["--workdir=w"], ["--workdir=w"])
    for index, process in enumerate(processes):
        code, output, errors = outcome(process)
        assert code == 0, errors
        assert (
            "echo: mine.py -> w, on 4 CPU devices in 2 processes, this is process "
            f"{index}\n"
        ) in output
        assert "devices 2 4\n" in output


@pytest.mark.parametrize(
    "first, second, complaint",
    [
        (
            ["--workdir=w"],
            ["--workdir=w", "--config.seed=1"],
            "echo: process 1 was started with another config than process 0: ",
        ),
        (
            ["--workdir=w", "--config.seed=16"],
            ["--workdir=w1", "--config.seed=16"],
            "does not see what process 0 writes to",
        ),
    ],
)
def test_processes_that_do_not_fit_are_refused_by_all(folder, first, second, complaint):
    for process in start_together(folder, first, second):
        code, output, errors = outcome(process)
        assert code == 2, errors
        assert complaint in errors.splitlines()[-1]
        assert "locked" not in output


def test_a_fault_among_processes_keeps_its_traceback(folder):
    (process,) = start_together(folder, ["--workdir=w", "--config.seed=15"])
    code, _, errors = outcome(process)
    assert code == 1
    assert "Traceback" in errors and "ZeroDivisionError" in errors


@pytest.mark.parametrize(
    "number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_signals_reach_the_child_that_works(folder, number, code):
    (process,) = start_together(folder, ["--workdir=w", "--config.seed=17"])
    while "waiting" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    # Ends only when the child, too, has let go of the pipes.
    found, _, errors = outcome(process)
    assert found == code, errors
    if number != signal.SIGKILL:
        says = "echo: interrupted; the same command goes on from what is saved\n"
        assert errors.endswith(says)


def test_a_loss_is_explained_in_a_line():
    beats = (
        "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):"
    )
    of_service = "E1124 06:08:14.866 65 coordination_service.cc:1549] "
    explain = processes.explain_loss
    assert explain(f"{of_service}{beats}\n1\nThe tasks").startswith(
        "process 1 was lost:"
    )
    assert explain(f"{of_service}{beats}\n2, 11\nThe tasks").startswith(
        "processes 2, 11 were lost:"
    )
    polled = "UNAVAILABLE: Socket closed\nRPC: /xla.coordination.Service/PollForError"
    assert explain(polled).startswith("process 0, through which all keep in touch, was")
    registering = "DEADLINE_EXCEEDED\nRPC: /xla.coordination.CoordinationService/"
    assert "did not find each other" in explain(registering + "RegisterTask")


def test_errors_of_a_broken_connection_are_recognised():
    gloo = ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")
    assert processes.broken_off(gloo)
    wrapped = UserError("the checkpoint cannot be read")
    wrapped.__cause__ = gloo
    assert processes.broken_off(wrapped)
    assert not processes.broken_off(ValueError("width 0: takes 1 or more"))
    assert not processes.broken_off(KeyboardInterrupt())


# The command line


def test_overrides_are_told_from_flags():
    found = command(
        *("--config.a.b=1=2", "--config.flag", "--noconfig.other", "--config.c", "-1"),
        *("--config.last", "--cpu_devices=4"),
    )
    assert found.overrides == [
        ("a.b", "1=2"),
        ("flag", "True"),
        ("other", "False"),
        ("c", "-1"),
        ("last", "True"),
    ]
    assert found.cpu_devices == 4
    assert found.workdir == pathlib.Path("w")
    assert not found.distributed


def test_what_the_next_command_repeats():
    """What other stages read as well: theirs are the sections of all."""
    asked = command(
        *("--config.data.source=a b", "--config.seed=3", "--config.tracker=none"),
        *("--config.federated.rounds=2", "--config.model.name=cnn", "--dry_run"),
    )
    assert command_line.repeated(asked) == (
        "--config=c --workdir=w '--config.data.source=a b' --config.seed=3 "
        "--config.tracker=none --config.model.name=cnn"
    )


def test_the_last_line_says_what_comes_next(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(CONFIG)
    arguments = [f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}"]

    def then(config, workdir):
        return f"python -m after {{same}} --in={workdir} {config.federated.rounds}"

    def run(config, workdir):
        print("done")

    launch.launch(run, ("federated",), arguments, run, then)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "done",
        f"next: python -m after {' '.join(arguments)} --in={tmp_path} 7",
    ]
    launch.launch(run, ("federated",), [*arguments, "--dry_run"], run, then)
    assert capsys.readouterr().out.endswith("done\n")
    launch.launch(run, ("federated",), arguments, then=lambda config, workdir: "")
    assert capsys.readouterr().out.endswith("done\n")


def test_processes_are_asked_for(monkeypatch):
    by_hand = ("--coordinator_address=h:1", "--num_processes=2", "--process_id=0")
    assert command(*by_hand).distributed
    assert command("--distributed").distributed
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "one,two")
    assert command().distributed
    assert not command("--nodistributed").distributed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config=c"], "--workdir is missing; see --help"),
        (["--workdir=w"], "--config is missing; see --help"),
        (
            ["--config=c", "--wrokdir=w"],
            "--wrokdir: no such flag; did you mean --workdir?",
        ),
        (["--config=c", "--zzz=w"], "--zzz: no such flag; see --help"),
        (
            ["--config=c", "--federated.rounds=3"],
            "--federated.rounds: no such flag; did you mean --config.federated.rounds?",
        ),
        (["mine.py:a=1"], "argument 'mine.py:a=1'; did you mean --config=mine.py:a=1?"),
        (["--config=c", "--workdir=w", "more"], "unexpected argument 'more'"),
        (["--config=c", "--workdir=w", "--cpu_devices=0"], "--cpu_devices=0"),
        (["--config=c", "--workdir=w", "--cpu_devices=x"], "--cpu_devices=x"),
        (
            ["--config=c", "--workdir=w", "--num_processes=2"],
            "--coordinator_address, --num_processes and --process_id go together",
        ),
    ],
)
def test_flags_are_checked(arguments, says):
    assert says in refusal(command_line.read_command, arguments)


# Config files


def test_reads_a_config_file_with_its_string(folder):
    config = launch.read_config(f"{folder}/mine.py:rate=0.5", ("data",))
    assert config.federated.rounds == 7
    assert config.federated.client_learning_rate == 0.5


@pytest.mark.parametrize("name", ["digits", "digits.py", "configs/digits.py"])
def test_configs_that_come_along_are_found_from_anywhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    config = launch.read_config(f"{name}:alpha=0.5", ("prompts", "federated"))
    assert config.federated.partition_options.alpha == 0.5
    configuration.validate(config)
    assert "digits" in launch.installed_configs()


def test_a_file_here_comes_before_one_that_comes_along(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "configs").mkdir()
    shutil.copy("mine.py", "configs/digits.py")
    assert launch.read_config("configs/digits.py").federated.rounds == 7


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "mine.py: has no function get_config(arg), which returns the config"),
        ("def get_config(arg):\n    return 3", "must return a ConfigDict"),
        ("def get_config(:", "mine.py line 1: "),
        (
            CONFIG.replace("rounds = 7", "round = 7"),
            "mine.py line 6: config.federated.round: no such field; did you mean "
            "config.federated.rounds?",
        ),
        (
            CONFIG.replace("rounds = 7", "update({'cohort_szie': 7})"),
            "mine.py line 6: config.cohort_szie: no such field; did you mean "
            "config.federated.cohort_size?",
        ),
        (
            CONFIG.replace("federated.rounds = 7", "fedrated.rounds = 7"),
            "mine.py line 6: config.fedrated: no such field; did you mean "
            "config.federated?",
        ),
        (
            CONFIG.replace("federated.rounds", "train.epochs"),
            "mine.py line 6: this config has no section `train`; name it in config",
        ),
        (CONFIG.replace('"data", ', ""), "mine.py has no section `data`"),
        (CONFIG.replace('"data"', '"dta"'), "dta: no such section; did you mean data?"),
        ("import no_such_module", "mine.py line 1: No module named"),
    ],
)
def test_a_config_file_that_does_not_work_is_named(folder, text, says):
    (folder / "mine.py").write_text(text)
    message = refusal(launch.read_config, f"{folder}/mine.py", ("data",))
    assert says in message
    assert str(folder / "mine.py") in message and len(message) < 400


def test_a_value_of_another_type_in_a_config_file_is_refused_by_its_field(folder):
    (folder / "mine.py").write_text(CONFIG.replace("rounds = 7", "rounds = 'x'"))
    config = launch.read_config(f"{folder}/mine.py", ("data",))
    message = refusal(configuration.validate, config)
    takes = "a whole number >= 1 and < 2**31"
    assert message == f"config.federated.rounds = 'x': takes {takes}"


def test_missing_config_files_name_those_that_come_along(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digist", "other/digits.py", "configs/../digits.py"):
        with pytest.raises(ConfigError) as caught:
            launch.read_config(name)
        assert f"--config={name}: no such file" in str(caught.value)
        assert "digits" in str(caught.value)


def test_config_strings_are_checked_by_the_config_file(folder):
    message = refusal(launch.read_config, f"{folder}/mine.py:raet=1")
    assert "raet: no such name in the config string; did you mean rate?" in message
    call = "return configuration.apply_arguments(config, arg, aliases)"
    deaf = CONFIG.replace(call, "return config")
    (folder / "mine.py").write_text(deaf)
    assert launch.read_config(f"{folder}/mine.py").federated.rounds == 7
    message = refusal(launch.read_config, f"{folder}/mine.py:rate=1")
    assert "get_config does nothing with 'rate=1'" in message
    (folder / "mine.py").write_text(
        deaf.replace("return", "print(config, arg); return")
    )
    assert launch.read_config(f"{folder}/mine.py:rate=1").federated.rounds == 7


def test_dry_run_takes_the_place_of_the_run(echo, folder, capsys):
    flags = "--config=mine.py", "--workdir=runs/x", "--dry_run"
    code, output, errors = echo(folder, *flags)
    assert code == 0, errors
    assert output.endswith("would run 7 rounds\n") and not (folder / "runs").exists()
    with pytest.raises(SystemExit):
        launch.launch(generator.run, ("federated",), flags)
    assert "--dry_run: this program takes none" in capsys.readouterr().err
