"""Wall time, processor time and memory of this process and all that it started.

Import this first: the start-up time is counted from here. Linux only (/proc).
"""

import os
import statistics
import sys
import threading
import time
from collections.abc import Sequence

START = time.perf_counter()

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def process_tree(root: int) -> list[int]:
    """Process ids of `root` and all its living descendants."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parent = int(file.read().rsplit(")", 1)[1].split()[1])
            except OSError:  # It has ended.
                continue
            children.setdefault(parent, []).append(int(name))
    found, queue = [], [root]
    while queue:
        process = queue.pop()
        found.append(process)
        queue += children.get(process, [])
    return found


def cpu_seconds(root: int | None = None) -> float:
    """User and system time so far: other work on the machine moves it less than wall
    time."""
    ticks = 0
    for process in process_tree(os.getpid() if root is None else root):
        try:
            with open(f"/proc/{process}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _CLOCK_TICKS


class Rounds:
    """Wall and processor time of each round; the first one compiles and warms up."""

    def __init__(self):
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []
        self.startup_s = 0.0
        """From the start of the process to the end of the first round."""

    def begin(self) -> None:
        """A round starts."""
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()

    def end(self) -> None:
        """It has ended, its results computed."""
        self.wall_s.append(time.perf_counter() - self._wall)
        self.cpu_s.append(cpu_seconds() - self._cpu)
        if len(self.wall_s) == 1:
            self.startup_s = time.perf_counter() - START


def wait_for_turn() -> None:
    """Says that this program has compiled and warmed up, and waits for a line."""
    print("ready", flush=True)
    sys.stdin.readline()


def memory_mb(root: int) -> tuple[float, int]:
    """Megabytes of a process and its descendants now, and how many these are.

    Proportional set size: a page that several processes share counts once.
    """
    total, processes = 0.0, 0
    for process in process_tree(root):
        try:
            with open(f"/proc/{process}/smaps_rollup") as file:
                line = next(line for line in file if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
        total += int(line.split()[1]) / 1024
        processes += 1
    return total, processes


class Memory(threading.Thread):
    """Samples the memory of this process and its descendants twice a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak_mb = 0.0
        self.processes = 0
        self.start()

    def run(self) -> None:
        """Until the process ends."""
        while True:
            self.sample()
            time.sleep(0.5)

    def sample(self) -> None:
        """Takes the memory of this moment into account."""
        total, processes = memory_mb(os.getpid())
        if total > self.peak_mb:
            self.peak_mb, self.processes = total, processes


def report(
    name: str,
    workload: str,
    rounds: Rounds,
    memory: Memory,
    sizes: Sequence[Sequence[int]],
    **more: object,
) -> dict:
    """What every simulator says of a workload.

    Args:
        name: of the simulator.
        sizes: examples of each client of each round, round 0 among them.
        more: further fields.
    """
    wall = rounds.wall_s[1:]
    examples = [int(sum(cohort)) for cohort in sizes[1 : len(rounds.wall_s)]]
    rates = [n / seconds for n, seconds in zip(examples, wall, strict=True)]
    cpu = [s / n for n, s in zip(examples, rounds.cpu_s[1:], strict=True)]
    clients = [len(sizes[0]) / seconds for seconds in wall]
    return dict(
        peer=name,
        workload=workload,
        rounds=len(wall),
        median_s_per_round=round(statistics.median(wall), 3),
        best_s_per_round=round(min(wall), 3),
        clients_per_s=round(statistics.median(clients), 2),
        examples_per_s=round(statistics.median(rates), 1),
        best_examples_per_s=round(max(rates), 1),
        cpu_ms_per_example=round(1000 * statistics.median(cpu), 3),
        first_round_s=round(rounds.wall_s[0], 2),
        startup_to_first_round_s=round(rounds.startup_s, 2),
        peak_pss_mb=round(memory.peak_mb),
        procs=memory.processes,
        rounds_s=[round(seconds, 3) for seconds in wall],
        **more,
    )
