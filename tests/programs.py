"""Runs a program as often as asked, each time in a process of its own, with kills.

Many runs import JAX once: a server reads a JSON object a line, and forks for each one.
JAX starts in the child alone.
"""

import importlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time


class Programs:
    """Starts `python -m <module>` again and again.

    Args:
        module: with a function `main`, as "federated.simulate".
        repository: the root of the checkout.
        log: file for what the last run printed.
        errors: file for its standard error; None: `log`, too.
    """

    def __init__(
        self,
        module: str,
        repository: pathlib.Path,
        log: pathlib.Path,
        errors: pathlib.Path | None = None,
    ):
        self.log, self.errors = log, errors
        path = os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")])
        self._server = subprocess.Popen(
            [sys.executable, __file__, module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )

    def run(
        self,
        *argv: str,
        environment: dict[str, str] | None = None,
        folder: pathlib.Path | None = None,
        kill_at: int | None = None,
        file: pathlib.Path | None = None,
        delay_s: float = 0.0,
        number: int = signal.SIGKILL,
    ) -> int:
        """Runs the program once; gives its exit status, negative for a signal.

        Args:
            argv: the command line.
            environment: variables to set.
            folder: where it runs; None: where the tests do.
            kill_at: lines of `file` at which the run gets a signal; None: it never
                does.
            delay_s: how long after that.
            number: of the signal.
        """
        request = {
            "argv": argv,
            "log": str(self.log),
            "errors": str(self.errors or ""),
            "folder": str(folder or ""),
            "environment": environment or {},
            "kill_at": kill_at,
            "file": str(file),
            "delay_s": delay_s,
            "number": int(number),
        }
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, f"{__file__} ended with {self._server.wait()}"
        return int(answer)

    def complete(self, *argv: str, **options) -> None:
        """As `run`, of which a failure fails the test."""
        code = self.run(*argv, **options)
        assert code == 0, self.log.read_text()

    def close(self) -> None:
        """Ends the server."""
        self._server.stdin.close()
        self._server.wait()


def in_two_processes(
    module: str, repository: pathlib.Path, *argv: str
) -> tuple[list[int], list[str]]:
    """Runs `python -m <module>` as two processes of one run, a CPU device each.

    Gives their exit statuses and what they printed.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", module, *argv, "--cpu_devices=1"),
                f"--coordinator_address=localhost:{port}",
                *("--num_processes=2", f"--process_id={process}"),
            ],
            cwd=repository,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], outputs


def _serve(main) -> None:
    for request in map(json.loads, sys.stdin):
        child = os.fork()
        if child == 0:
            try:
                _run(main, request)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
        kill_at = request["kill_at"]
        while kill_at is not None:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if _lines(request["file"]) >= kill_at:
                time.sleep(request["delay_s"])
                os.kill(child, request["number"])
                kill_at = None
            time.sleep(0.001)
        else:
            _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(main, request) -> None:
    with open(request["log"], "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if request["errors"]:
        with open(request["errors"], "wb") as file:
            os.dup2(file.fileno(), 2)
    if request["folder"]:
        os.chdir(request["folder"])
    os.environ.update(request["environment"])
    # Whoever runs the tests may ignore it, as nohup.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [main.__module__, *request["argv"]]
    code = 1
    try:
        main()
        code = 0
    except SystemExit as leaving:
        code = leaving.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _lines(path: str) -> int:
    try:
        return pathlib.Path(path).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    _serve(importlib.import_module(sys.argv[1]).main)
