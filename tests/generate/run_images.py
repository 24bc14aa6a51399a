"""Runs generate.images as often as asked, each time in a process of its own.

A program of the tests, so that many runs import JAX once: it reads a JSON object a line
and forks for each one. JAX starts in the child alone.

    argv: the command line.
    log: file for what the run prints.
    environment: variables to set.
    kill_at: lines of the manifest at which the run gets SIGKILL, or null.
    manifest, delay_s: where to look, and how long to wait after that.

Answers each with the exit status on a line, negative for a signal.
"""

import json
import os
import pathlib
import signal
import sys
import time

from generate import images


def run(argv, log, environment=None):
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment or {})
    sys.argv = ["images", *argv]
    code = 1
    try:
        images.main()
        code = 0
    except SystemExit as leaving:
        code = leaving.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def lines(path):
    try:
        return pathlib.Path(path).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


for request in map(json.loads, sys.stdin):
    kill_at, manifest = request.pop("kill_at", None), request.pop("manifest", None)
    delay_s = request.pop("delay_s", 0)
    child = os.fork()
    if child == 0:
        try:
            run(**request)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    while kill_at is not None:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if lines(manifest) >= kill_at:
            time.sleep(delay_s)
            os.kill(child, signal.SIGKILL)
            kill_at = None
        time.sleep(0.001)
    else:
        _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
