"""Several processes: that they agree, and what is said when one is lost."""

import contextlib
import ctypes
import io
import os
import re
import signal
import sys
import time
import zlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from gptfl_jax.errors import UserError


def agree(value: bytes, complaint: str) -> None:
    """Makes sure that all processes hold the same value.

    Raises:
        UserError: in all of them, one does not: "process <k> <complaint>".
    """
    if jax.process_count() == 1:
        return
    values = multihost_utils.process_allgather(np.uint32(zlib.crc32(value)))
    if (values != values[0]).any():
        raise UserError(f"process {np.argmax(values != values[0])} {complaint}")


# When a process is lost, JAX's coordination service tells the others, and its C++ code
# aborts them with a stack trace: Python cannot step in. So the work is done in a child,
# and its parent says in a line what has happened.

LOST = 3
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


def go_on_in_a_child(program: str) -> None:
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
        print(f"{program}: {explain_loss(said)}", file=sys.stderr, flush=True)
        os._exit(LOST)
    sys.stderr.write(said)
    if code < 0:
        ended_by = signal.Signals(-code).name
        print(f"{program}: ended by {ended_by}", file=sys.stderr)
        code = 128 - code
    sys.stderr.flush()
    os._exit(code)


def _end_with(parent: int) -> None:
    """Makes the parent's end that of this process, where the system can (Linux)."""
    with contextlib.suppress(AttributeError):
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def _pass_on(stream: io.TextIOBase) -> str:
    """Writes the lines to stderr, up to the first complaint of the service.

    Returns:
        The rest: what matters of it is clear when the child has ended.
    """
    for line in stream:
        if _FROM_SERVICE.match(line):
            return line + stream.read()
        sys.stderr.write(line)
        sys.stderr.flush()
    return ""


def explain_loss(said: str) -> str:
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
def stopping_together(program: str, heartbeat_timeout_s: int) -> Iterator[None]:
    """Holds an error back until it is clear whether a lost process is behind it.

    The processes next to a lost one in a collective operation see a broken connection
    at once, the service misses a heartbeat after a while. If it does, it aborts us.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        if broken_off(error):
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


def broken_off(error: BaseException | None) -> bool:
    """Whether an error comes from talking with other processes."""
    while error is not None:
        of_jax = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
        if of_jax and _BROKEN_OFF.match(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
