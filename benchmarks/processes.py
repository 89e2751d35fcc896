"""Processes with pinned threads, several at once, each telling what it found in its last line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
QUIET = {"HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class Done:
    """A process that has ended well."""

    wall_s: float
    """from its start to its end, as its caller sees it"""
    told: dict[str, Any]
    """its last line of JSON, if any"""


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def at_once(commands: Sequence[Sequence[str]], threads: int | None = 1) -> list[Done]:
    """Run `python` with all of the commands at once. Raises RuntimeError with the last lines of one that fails.

    threads: of each process, pinned to so many cores of its own; None: PyTorch's choice, pinned to nothing.
    """
    free, wide = cores(), threads or 0
    pins = [free[n * wide : (n + 1) * wide] for n in range(len(commands))]
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(lambda command, pin: _run(command, threads, pin), commands, pins))


def _run(command: Sequence[str], threads: int | None, pin: list[int]) -> Done:
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")} | QUIET
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
    if pin and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, pin)  # its threads, started later, inherit it
    out, errors = process.communicate()
    wall = time.perf_counter() - started
    if process.returncode:
        last = "\n".join(errors.strip().splitlines()[-8:])
        raise RuntimeError(f"python {' '.join(command)} ended with {process.returncode}:\n{last}")
    told = [line for line in out.strip().splitlines() if line.startswith("{")]
    return Done(wall, json.loads(told[-1]) if told else {})


def meet(folder: Path, name: str, me: int, everyone: int, patience_s: float = 120.0) -> None:
    """Wait here until all workers have come to the place called `name`."""
    (folder / f"{name}.{me}").touch()
    until = time.monotonic() + patience_s
    while len(list(folder.glob(f"{name}.*"))) < everyone:
        if time.monotonic() > until:
            raise TimeoutError(f"only some of {everyone} workers came to {name}")
        time.sleep(0.002)
