"""What a program says while it runs: lines, and how far a long loop is."""

import shutil
import sys
import textwrap
import time

import jax
from tqdm.auto import tqdm

# Between two lines in a log file, in seconds.
_EVERY_S = 30.0
# How long the pace is measured before the first of them, which says how long it takes.
_MEASURED_S = 5.0
# In a notebook tqdm.auto's bar is a widget.
_IN_NOTEBOOK = any(each.__module__ == "tqdm.notebook" for each in tqdm.__mro__)


def say(text: str, quiet: bool = False) -> None:
    """Prints a line, of several processes in the first alone.

    On a terminal a sentence that is wider ends its lines between words; a table, and a
    command to be copied, stay as they are.

    Args:
        text: the line.
        quiet: print nothing.
    """
    if jax.process_index() == 0 and not quiet:
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns
            text = "\n".join(_wrapped(line, width) for line in text.split("\n"))
        tqdm.write(text, file=sys.stdout)  # above a bar, where there is one
        sys.stdout.flush()


def _wrapped(line: str, width: int) -> str:
    if len(line) <= width or "  " in line.strip() or line.startswith("next: "):
        return line
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)


def counted(number: int, noun: str) -> str:
    """A number of things in words, as `1 round` or `1,000 rounds`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def interval(seconds: float) -> str:
    """A time in words, as 02:30, or 1:02:30 of an hour and more."""
    return tqdm.format_interval(seconds)


class Progress:
    """Progress of a loop, shown on stderr by the first process.

    A bar on a terminal and in a notebook, elsewhere a plain line now and then; the
    first of them as soon as the pace is known, where much is left. The pace is that of
    what came after the first step, which has waited for programs to be compiled; until
    the second is done nothing is said of it.

    Args:
        total: steps of the loop.
        unit: what a step is called, as "round", or several are, as "images".
        done: steps done by earlier runs.
        name: of the run.
        leave: whether the bar stays on the terminal when the loop is over.
        shown: whether there is anything to see.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        done: int = 0,
        name: str = "",
        leave: bool = True,
        shown: bool = True,
    ):
        self._total, self._unit, self._name = total, unit, name
        self.done = done
        """Steps done so far, by earlier runs too."""
        self._note, self._before = "", done
        self._start = self._shown = time.monotonic()
        self._first: tuple[float, int] | None = None
        """When the first step was done here, and how many were done then."""
        self._foretold = False
        self._lines = not (_IN_NOTEBOOK or sys.stderr.isatty())
        shown = shown and jax.process_index() == 0
        self._shows = shown and self._lines
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=name or None,
            unit=unit,
            disable=self._lines or not shown,
            leave=leave,
            mininterval=0.5,
        )

    def update(self, count: int = 1) -> None:
        """Counts steps as done."""
        self.done += count
        now = time.monotonic()
        if self._first is None:
            self._first = now, self.done
            # The bar measures its pace from here; until then it shows a "?".
            self._bar.n = self._bar.initial = self.done
            self._bar.last_print_n, self._bar.last_print_t = self._bar.n, time.time()
            self._bar.refresh()
        else:
            self._bar.initial = self._before
            self._bar.update(count)
        if self._shows and (now - self._shown >= _EVERY_S or self._foretells(now)):
            self._shown, self._foretold = now, self._paced()
            print(self._line(now), file=sys.stderr, flush=True)

    def _foretells(self, now: float) -> bool:
        """Whether it is time for a first line."""
        measured = self._paced() and now - self._first[0] >= _MEASURED_S
        return not self._foretold and measured and self._left(now) >= _EVERY_S

    def _paced(self) -> bool:
        """Whether more than the first step is done."""
        return self.done > self._first[1]

    def note(self, text: str) -> None:
        """Shows a text, as the last measurement, from now on."""
        self._note = text
        self._bar.set_postfix_str(text, refresh=False)

    def _left(self, now: float) -> float:
        """Seconds until it is done, about."""
        start, before = self._first
        pace = (now - start) / (self.done - before)
        return pace * (self._total - self.done)

    def _line(self, now: float) -> str:
        parts = [
            f"{self._unit} {self.done:,} of {self._total:,}",
            *([self._note] if self._note else []),
            f"{interval(now - self._start)} gone",
            *([f"about {interval(self._left(now))} left"] if self._paced() else []),
        ]
        name = f"{self._name}: " if self._name else ""
        return name + ", ".join(parts)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
