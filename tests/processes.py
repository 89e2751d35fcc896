"""The processes of a run on Ray, by the part that they play; for tests that kill them. Linux: read from /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

TITLES = {"worker": "ray::RayTrainWorker", "controller": "ray::TrainController", "queue": "ray::Board"}
"""part -> how the title that Ray gives its process begins"""
HEAD = ("gcs_server", "raylet")
"""what makes a node the head, killed together"""


def below(pid: int) -> Iterator[tuple[int, str]]:
    """(process id, command line) of every process started below `pid`, its children first."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(folder.name))
    waiting = [pid]
    while waiting:
        for child in parents.get(waiting.pop(0), ()):
            waiting.append(child)
            with contextlib.suppress(OSError):
                yield child, Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def playing(part: str, driver: int) -> list[int]:
    """Process ids of those below `driver` that play a part: worker, controller, queue, driver or head."""
    if part == "driver":
        return [driver]
    if part == "head":
        return [pid for pid, command in below(driver) if command.split(" ")[0].rpartition("/")[2] in HEAD]
    return [pid for pid, command in below(driver) if command.startswith(TITLES[part])]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill(*pids: int) -> None:
    """kill -9, and wait until they are gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
