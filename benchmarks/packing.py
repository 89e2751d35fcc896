"""What packing buys: K pictures in a U-Net batch against runs of their own, in one and two worker processes.

    python -m benchmarks.packing [--packs 1,2,4,8,16] [--recipe paper] [--steps 200] [--pictures 50]

Every arrangement pins its threads; workers of one arrangement work at the same time. Timed are whole steps, looks
(every 25 steps) apart and added in their share; all pack sizes in turns, --rounds times, and the median round counts,
so that load which comes and goes meets them all. The last line is JSON:

    ratio            K = 8 with its best arrangement over separate runs (K = 1) with theirs, start-up left out
    ratio_started    the same with start-up: separate runs start a process for every picture of --steps steps, packs
                     one for every worker, over --pictures pictures
    ratio_default    over separate runs one after another with the threads that PyTorch chooses, start-up left out
    rates            arrangement -> K -> pictures x steps per second
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import median

import torch

from benchmarks.jobs import BASE, JUDGE, endless, scene_jobs, under_way
from benchmarks.processes import Done, at_once, meet
from benchmarks.provenance import say
from mcpl.cli.terminal import one_line
from mcpl.recipes import load

COMPARED = 8
"""pictures of a pack in the ratios"""
ARRANGEMENTS = {"1 worker, 1 thread": (1, 1), "1 worker, default threads": (1, None), "2 workers, 1 thread": (2, 1)}
"""name -> workers at once, threads of each"""


def worker(given: argparse.Namespace) -> None:
    """Time a step of every pack size in turns; prints K -> median seconds per step, looks included in their share."""
    began, looks_every = time.perf_counter(), load(given.recipe).probe_every
    recipe = endless(given.recipe, probe_every=10**6)  # looks are timed apart
    model, _ = scene_jobs(recipe, 1)
    ready = time.perf_counter() - began
    packs = [int(k) for k in given.packs.split(",")]
    _, jobs = scene_jobs(recipe, max(packs), model)
    learners = {k: under_way(model, jobs[:k], recipe) for k in packs}
    seconds: dict[int, list[float]] = {k: [] for k in packs}
    for turn, (k, learner) in product(range(given.rounds), learners.items()):
        meet(given.folder, f"start-{turn}-{k}", given.worker, given.workers)
        started, steps = time.perf_counter(), 0
        while steps < 2 or time.perf_counter() - started < given.seconds:
            learner.advance()
            steps += 1
        step = (time.perf_counter() - started) / steps
        started = time.perf_counter()
        learner._look()
        seconds[k].append(step + (time.perf_counter() - started) / looks_every)
        meet(given.folder, f"end-{turn}-{k}", given.worker, given.workers)
    step_s = {k: median(own) for k, own in seconds.items()}
    inside = time.perf_counter() - began
    print(json.dumps({"step_s": step_s, "ready_s": ready, "inside_s": inside, "threads": torch.get_num_threads()}))


def measured(name: str, packs: str, given: argparse.Namespace) -> list[Done]:
    """One arrangement's workers, at once."""
    workers, threads = ARRANGEMENTS[name]
    with tempfile.TemporaryDirectory() as folder:
        common = ["-m", "benchmarks.packing", "--recipe", given.recipe, "--packs", packs, "--folder", folder]
        common += ["--rounds", str(given.rounds), "--seconds", str(given.seconds)]
        common += ["--workers", str(workers), "--worker"]
        return at_once([[*common, str(n)] for n in range(workers)], threads)


def start_up(done: list[Done]) -> float:
    """Seconds that a process needs before its first step: libraries, base, one picture; mean of workers at once."""
    return sum(one.wall_s - one.told["inside_s"] + one.told["ready_s"] for one in done) / len(done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", default="1,2,4,8,16")
    parser.add_argument("--recipe", default="paper")
    parser.add_argument("--steps", type=int, default=200, help="of a picture, where start-up counts")
    parser.add_argument("--pictures", type=int, default=50, help="over which start-up is spread")
    parser.add_argument("--rounds", type=int, default=7, help="turns of all pack sizes")
    parser.add_argument("--seconds", type=float, default=2, help="of a turn of one pack size, at least two steps")
    for hidden in ("--worker", "--workers"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help="also keep the last line in this file")
    given = parser.parse_args()
    if given.worker is not None:
        worker(given)
        return
    rates: dict[str, dict[int, float]] = {}
    threads: dict[str, int] = {}
    for name in ARRANGEMENTS:
        packs = given.packs if "default" not in name else f"1,{COMPARED}"
        done = measured(name, packs, given)
        threads[name] = done[0].told["threads"]
        rates[name] = {int(k): sum(int(k) / one.told["step_s"][k] for one in done) for k in done[0].told["step_s"]}
        print(name + ": " + "  ".join(f"K={k} {rate:.2f}/s" for k, rate in rates[name].items()), flush=True)
    start = start_up(done)  # of the last arrangement: a worker a core
    say(ratios(rates, start, given.steps, given.pictures) | {
        "rates": {name: {k: round(rate, 3) for k, rate in own.items()} for name, own in rates.items()},
        "threads": threads, "start_s": round(start, 1), "recipe": given.recipe, "rounds": given.rounds,
    }, "benchmarks.packing", given.write, BASE, JUDGE)  # fmt: skip


def ratios(rates: dict[str, dict[int, float]], start: float, steps: int, pictures: int) -> dict[str, float]:
    """What the last line says, from the rates (pictures x steps per second) and the seconds of a start."""
    workers = {name: ARRANGEMENTS[name][0] for name in rates}
    separate = max(own[1] for own in rates.values())
    packed = max(own[COMPARED] for own in rates.values())
    with_start = max(workers[n] / (start + workers[n] * steps / own[1]) for n, own in rates.items())
    of_packs = max(pictures / (start + pictures * steps / own[COMPARED]) for own in rates.values())
    return {
        "ratio": round(packed / separate, 3),
        "ratio_started": round(of_packs / with_start, 3),
        "ratio_default": round(packed / rates["1 worker, default threads"][1], 3),
    }


if __name__ == "__main__":
    with one_line("benchmarks.packing"):
        main()
