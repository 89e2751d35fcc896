"""What a person sees while a dataset is learned: one bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from mcpl.orchestration.fanout import Progress

LINE_SECONDS = 30.0
"""Between two lines of a log; the first picture, and the last, always get one"""


@contextlib.contextmanager
def shown(console: Console | None = None, what: str = "learning") -> Iterator[Callable[[Progress], None]]:
    """A callback for `fanout.run(on_progress=...)`. Writes to stderr, so that results alone go to stdout."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = [
        TextColumn(what),
        BarColumn(bar_width=None),
        TextColumn("{task.completed:.0f}/{task.total:.0f} pictures"),
        TextColumn("{task.fields[about]}"),
    ]
    with Bar(*columns, console=console, refresh_per_second=4) as bar:
        task = bar.add_task(what, total=None, about="starting")

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.done, total=progress.total, about=about(progress))

        yield show


class _Lines:
    def __init__(self, console: Console):
        self._console = console
        self._due = 0.0
        self._done: int | None = None

    def __call__(self, progress: Progress) -> None:
        first = self._done is None
        moved = progress.done != self._done
        last = progress.done == progress.total and moved
        if first or last or progress.seconds >= self._due:
            self._console.print(
                f"{progress.done}/{progress.total} pictures, {about(progress)}", soft_wrap=True, highlight=False
            )
            self._due = progress.seconds + LINE_SECONDS
        self._done = progress.done


def about(progress: Progress) -> str:
    """Speed, time left and what went wrong, in a line."""
    if not progress.pictures_per_minute:
        said = ["starting workers" if not progress.workers else f"{progress.workers} at work"]
    else:
        said = [f"{progress.pictures_per_minute:.3g}/min"]
        if progress.seconds_left is not None and progress.done < progress.total:
            said.append(f"{duration(progress.seconds_left)} left")
    said += [f"{count} {what}" for count, what in ((progress.failed, "failed"), (progress.skipped, "skipped")) if count]
    if progress.lost_workers:
        said.append(f"{progress.lost_workers} workers lost and replaced")
    return ", ".join(said)


def duration(seconds: float) -> str:
    """The largest two units: 45 s, 3 min 20 s, 5 h 12 min, 3 d 4 h."""
    seconds = round(seconds)
    units = [(86400, "d"), (3600, "h"), (60, "min"), (1, "s")]
    for (size, name), (smaller, its_name) in itertools.pairwise(units):
        if seconds >= size:
            rest = seconds % size // smaller
            return f"{seconds // size} {name}" + (f" {rest} {its_name}" if rest else "")
    return f"{seconds} s"
