"""Where a figure comes from: command, code, machine, base. Written beside every figure that is kept."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from mcpl.models.stable_diffusion import files_digest
from mcpl.orchestration.job import commit, processor

LOAD = round(os.getloadavg()[0], 2)
"""processes that wanted a core in the minute before this one began: figures of time want it near 0"""


def provenance(module: str, base: Path, judge: Path) -> dict[str, Any]:
    """`module` is the benchmark run with `python -m`; `judge` is the trained judge's file of weights."""
    return machine(module) | {
        "base": base.name,
        "base_digest": files_digest(base),
        "judge_sha256": hashlib.sha256(judge.read_bytes()).hexdigest(),
    }


def machine(module: str) -> dict[str, Any]:
    """Command, code and machine of a benchmark that looks at no base."""
    return {
        "command": " ".join(["python", "-m", module, *sys.argv[1:]]),
        "commit": commit(),
        "hardware": {
            "cpu": processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "load_before": LOAD,
        },
        "day": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def say(
    found: Mapping[str, Any], module: str, file: Path | None = None, base: Path | None = None, judge: Path | None = None
) -> None:
    """A benchmark's last line: what it found, and where that comes from (its base, where given); kept in `file`."""
    found = {**found, **(provenance(module, base, judge) if base and judge else machine(module))}
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
