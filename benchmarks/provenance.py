"""Where a figure comes from: command, code, machine, base. Written beside every figure that is kept."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from mcpl.models.stable_diffusion import files_digest
from mcpl.orchestration.job import commit


def provenance(module: str, base: Path, judge: Path) -> dict[str, Any]:
    """`module` is the benchmark run with `python -m`; `judge` is the trained judge's file of weights."""
    return {
        **machine(module),
        "base": base.name,
        "base_digest": files_digest(base),
        "judge_sha256": hashlib.sha256(judge.read_bytes()).hexdigest(),
    }


def machine(module: str) -> dict[str, Any]:
    """Command, code and machine of a figure that no base has a part in."""
    return {
        "command": " ".join(["python", "-m", module, *sys.argv[1:]]),
        "commit": commit(),
        "hardware": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def _cpu() -> str:
    """The processor's model name, as far as the system tells it."""
    told = Path("/proc/cpuinfo")
    if told.exists():
        for line in told.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
