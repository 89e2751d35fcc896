"""What the fan-out costs: two workers on Ray against two processes that know nothing of each other, at equal work.

    python -m benchmarks.fanout_efficiency [--pictures 48] [--steps 20] [--pack 4] [--workers 2] [--rounds 3]
        [--write docs/results/fanout-efficiency.json]

The same rendered scenes, base, recipe and packs both times, in turns. The independent processes read their share, learn
it and write its parts, without queue, leases, beats, acknowledgements or fsync. In steady state: the pictures of each
process after its first pack, over the time from that pack's end to its last one's. Start-up, until the last process has
loaded the base, stands beside it. The last line is JSON; efficiency is Ray's pictures per second over the others',
medians of the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mcpl.config import Placement, Recipe, RunConfig
from mcpl.data.bank import encode, part_name
from mcpl.data.dataset import Dataset
from mcpl.orchestration import fanout
from mcpl.orchestration.job import Runner
from mcpl.recipes import adjust, load
from mcpl.types import BankRow, Example

FOLDER = "MCPL_EFFICIENCY_FOLDER"
"""Environment variable with the directory where every process notes when it finished its packs"""
RUNNER = "benchmarks.fanout_efficiency:Timed"


class Timed(Runner):
    """The real runner, which notes the time before its first pack and after each."""

    def __init__(self, recipe: Recipe, placement: Placement):
        super().__init__(recipe, placement)
        self._notes = Path(os.environ[FOLDER]) / f"{os.getpid()}.txt"
        self._notes.write_text(f"{time.time()} 0\n")

    def __call__(self, examples: Sequence[Example], on_done: Callable[[BankRow], None] | None = None) -> list[BankRow]:
        rows = super().__call__(examples, on_done)
        with open(self._notes, "a") as notes:
            notes.write(f"{time.time()} {len(rows)}\n")
        return rows


def alone(config: RunConfig, rank: int) -> None:
    """One independent process: its share of the dataset's shards, one after the other."""
    dataset, out = Dataset.open(config.dataset), Path(config.output)
    out.mkdir(parents=True, exist_ok=True)
    runner = Timed(config.recipe, config.placement)
    for number, shard in list(enumerate(dataset.shards(config.placement.shard_size)))[rank :: config.placement.workers]:
        (out / part_name(number)).write_bytes(encode(runner(dataset.read(shard))))


def pace(folder: Path, started: float) -> dict[str, float]:
    """From the notes of all processes: pictures per second together in steady state, and seconds until it began."""
    notes = [[line.split() for line in path.read_text().splitlines()] for path in folder.glob("*.txt")]
    times = [[(float(at), int(done)) for at, done in lines] for lines in notes if len(lines) > 2]
    speed = sum(sum(done for _, done in own[2:]) / (own[-1][0] - own[1][0]) for own in times)
    return {
        "processes": len(times),
        "pictures_per_s": speed,
        "start_up_s": max(own[0][0] for own in times) - started,
    }


def on_ray(config: RunConfig, folder: Path) -> dict[str, float]:
    os.environ[FOLDER] = str(folder)
    started = time.time()
    summary = fanout.run(config, RUNNER)
    assert summary.learned == summary.rows, summary
    return pace(folder, started)


def independent(config: RunConfig, folder: Path) -> dict[str, float]:
    started = time.time()
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.fanout_efficiency", "--alone", config.model_dump_json()]
    processes = [
        subprocess.Popen([*command, str(rank)], env=os.environ | threads | {FOLDER: str(folder)})
        for rank in range(config.placement.workers)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError("an independent process failed")
    return pace(folder, started)


def measure(pictures: int, steps: int, pack: int, workers: int, rounds: int, folder: Path) -> dict:
    from mcpl.data.sources import scenes, write_dataset

    write_dataset(scenes(pictures, 3), str(folder / "dataset"))
    config = RunConfig(
        dataset=str(folder / "dataset"),
        output="",
        recipe=adjust(load("paper"), steps=steps),
        placement=Placement(workers=workers, pack=pack, shard_size=pack),
    )
    found: dict[str, list[dict[str, float]]] = {"ray": [], "independent": []}
    for turn in range(rounds):
        for how, measured in (("ray", on_ray), ("independent", independent)):
            notes = folder / f"notes-{how}-{turn}"
            notes.mkdir()
            given = config.model_copy(update={"output": str(folder / f"bank-{how}-{turn}")})
            found[how].append(measured(given, notes))
            print(how, " ".join(f"{name}={value:.3g}" for name, value in found[how][-1].items()), flush=True)
    middle = {how: statistics.median(each["pictures_per_s"] for each in turns) for how, turns in found.items()}
    return {
        "efficiency": round(middle["ray"] / middle["independent"], 4),
        "pictures_per_s": {how: round(value, 4) for how, value in middle.items()},
        "start_up_s": {how: [round(each["start_up_s"], 1) for each in turns] for how, turns in found.items()},
        "rounds": {how: [round(each["pictures_per_s"], 4) for each in turns] for how, turns in found.items()},
        "pictures": pictures,
        "steps": steps,
        "pack": pack,
        "workers": workers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pack", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the figures here, as JSON")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        alone(RunConfig.model_validate_json(options.alone[0]), int(options.alone[1]))
        return
    from benchmarks.provenance import say

    with tempfile.TemporaryDirectory(prefix="mcpl-efficiency-") as folder:
        found = measure(options.pictures, options.steps, options.pack, options.workers, options.rounds, Path(folder))
    say(found, "benchmarks.fanout_efficiency", options.write)


if __name__ == "__main__":
    main()
