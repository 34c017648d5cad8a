"""How far is it? One line that changes in a terminal, with the time left; a few lines where there is none."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from scalefed.cli.output import say

if TYPE_CHECKING:
    from scalefed.experiment import Progress

_LINES = 5
"""Lines of a log, which nobody watches."""


class Meter:
    """A bar on a terminal; elsewhere a handful of lines."""

    def __init__(self, words: str, *, total: int) -> None:
        self.words, self.total, self.shown, self.bar = words, max(total, 1), -1, None
        self.every = max(1, -(-self.total // _LINES))
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
                       TimeRemainingColumn(compact=True), TextColumn("{task.fields[note]}"))  # fmt: skip
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
            self.task = self.bar.add_task(words, total=total, note="")

    def step(self, done: int, note: str) -> None:
        """Show that so many are done."""
        if self.bar is not None:
            self.bar.update(self.task, completed=done, note=note)
        elif done != self.shown and (done % self.every == 0 or done == self.total):
            self.shown = done
            say(f"{self.words}: {done} of {self.total}" + (f", {note}" if note else ""))

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()


class SweepMeter:
    """How far a sweep is, and which of its runs failed."""

    def __init__(self, total: int) -> None:
        self.meter = Meter("runs", total=total)
        self.failed: set[str] = set()

    def __call__(self, progress: "Progress") -> None:
        """Take in one report of the sweep."""
        for run_id, message in progress.failed:
            if run_id not in self.failed:
                self.failed.add(run_id)
                say(f"warning: {run_id} failed: {message}")
        self.meter.step(progress.done, time_left(progress.seconds_left))

    def close(self) -> None:
        """End the bar."""
        self.meter.close()


@contextlib.contextmanager
def working(words: str) -> Iterator[None]:
    """Say what takes a while, on a terminal: a line that moves, and is gone when it is done."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(words):
        yield


def time_left(seconds: float | None) -> str:
    """Time left in words.

    >>> time_left(30), time_left(600), time_left(9000), time_left(None)
    ('30 s left', '10 min left', '2.5 h left', '')
    """
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"
