"""Pictures per hour against the obvious peer: one process per picture, as diffusers' `textual_inversion.py` works.

    python -m benchmarks.peer [--pictures 50] [--steps 200] [--measure 6] [--timed 100] [--full]

The same machine, base, pictures, batch and number of steps. The peer (`benchmarks.textual_inversion`) learns one word
of a picture in a process of its own; its best threading is found first: one process with PyTorch's threads, or one
process a core with one thread each. Ours is `pipelines/train_all.py` with a worker a core, packs of 8, all words.

By default a few pictures and steps are measured, start-up (libraries, base, Ray, reading, writing) apart from steps,
and the figures for --pictures of --steps are arithmetic from these; `--full` runs every picture for real. Last line:

    ratio           our pictures per hour over the peer's, start-up included
    ratio_steady    the same with start-up left out, all workers busy
    ratio_one_word  over the peer once for each word of a picture (single-word inversion, n times), start-up included
    ratio_release   steady, over a process with the habits of MCPL's official release on top: attention of all layers
                    stored, float32, anomaly detection on
    script          with --script PATH of diffusers' own script (see `benchmarks.diffusers_script`): the ratios over it,
                    measured in the same way
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks.jobs import BASE, JUDGE
from benchmarks.processes import Done, at_once, cores
from benchmarks.provenance import say
from mcpl.studies import START

PACK = 8
FEW = 8
"""steps of what is slow: the release's way, and default threads where cores are shared"""


@dataclass(frozen=True)
class Cost:
    """What a picture costs: on `at_once` processes, each picture a start and its steps; seconds."""

    start_s: float
    step_s: float
    at_once: int

    def pictures_per_hour(self, steps: int, start: bool = True, runs: int = 1) -> float:
        """runs: processes that a picture takes."""
        return 3600 * self.at_once / (runs * (self.start_s * start + steps * self.step_s))


def write_pictures(folder: Path, count: int, skip: int = 0) -> list[tuple[Path, tuple[str, ...]]]:
    """Scenes as PNG files with their sentences beside them; each with the words that it names."""
    from benchmarks.recipes import examples
    from mcpl.prompts import parse

    folder.mkdir()
    lines, written = [], []
    for example in examples("unnamed-2", "dev", count, skip):
        path = folder / f"{example.id}.png"
        path.write_bytes(example.image)
        lines.append(json.dumps({"file_name": path.name, "text": example.text}) + "\n")
        written.append((path, tuple(concept.slug for concept in parse(example.text).concepts)))
    (folder / "metadata.jsonl").write_text("".join(lines))
    return written


def peer_command(picture: Path, word: str, steps: int, out: Path, *more: str) -> list[str]:
    """One run of the peer, from the words that all recipes of `benchmarks.recipes` start from."""
    return [
        "-m", "benchmarks.textual_inversion", str(picture), "--word", word, "--base", str(BASE), "--out", str(out),
        "--initializer", START["initializer"], "--steps", str(steps), *more,
    ]  # fmt: skip


def cost(done: list[Done], runs_at_once: int) -> Cost:
    """Means over runs; start-up is what a run took besides its loop."""
    start = sum(one.wall_s - one.told["loop_s"] for one in done) / len(done)
    return Cost(start, sum(one.told["step_s"] for one in done) / len(done), runs_at_once)


def peer(pictures: list[tuple[Path, tuple[str, ...]]], steps: int, out: Path) -> tuple[str, Cost]:
    """(its best threading, its cost). One process with the default threads runs a single picture to be compared."""
    words = [(path, names[0]) for path, names in pictures]
    alone = cost(at_once([peer_command(*words[0], FEW, out)], None), 1)
    many, together = len(cores()), []
    for first in range(0, len(words), many):
        part = words[first : first + many]
        together += at_once([peer_command(path, word, steps, out) for path, word in part], 1)
    beside = cost(together, many)
    ways = {"one process, default threads": alone, f"{many} processes, one thread each": beside}
    for name, own in ways.items():
        print(f"peer, {name}: start {own.start_s:.1f} s, step {own.step_s:.3f} s", flush=True)
    return max(ways.items(), key=lambda way: way[1].pictures_per_hour(steps))


def script(path: Path, pictures: list[Path], steps: int, scratch: Path) -> Cost:
    """Diffusers' own script, a picture and a thread a process, as many as there are cores.

    A run of one step tells what it takes to start.
    """
    base = float32_copy(scratch / "base")

    def seconds(count: int) -> float:
        commands = []
        for picture in pictures[: len(cores())]:
            alone = scratch / f"only-{picture.stem}"
            alone.mkdir(exist_ok=True)
            shutil.copy(picture, alone)
            commands.append([
                "-m", "benchmarks.diffusers_script", str(path), "--pretrained_model_name_or_path", str(base),
                "--train_data_dir", str(alone), "--output_dir", str(scratch / f"out-{picture.stem}"),
                "--placeholder_token", "<heart>",
                "--initializer_token", "thing", "--resolution", "32", "--train_batch_size", "4",
                "--save_steps", "1000000", "--max_train_steps", str(count), "--learning_rate", "5e-4",
            ])  # fmt: skip
        return sum(done.wall_s for done in at_once(commands, 1)) / len(commands)

    seconds(1)  # the first run reads everything from disk
    start = seconds(1)
    step = (seconds(steps) - start) / (steps - 1)
    print(f"diffusers' script: start {start:.1f} s, step {step:.3f} s", flush=True)
    return Cost(start - step, step, len(cores()))


def float32_copy(folder: Path) -> Path:
    """The base with its text encoder in float32: the script would take it as it is stored, and train in half."""
    shutil.copytree(BASE, folder)
    for file in (folder / "text_encoder").glob("*.safetensors"):
        save_file({name: value.float() for name, value in load_file(file).items()}, file, {"format": "pt"})
    config = folder / "text_encoder" / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {name: "float32" for name in ("dtype", "torch_dtype") if name in told}))
    return folder


def train_all(folder: Path, output: Path, steps: int, recipe: str) -> float:
    """Seconds of `pipelines/train_all.py` over a folder of pictures."""
    return at_once([[
        "pipelines/train_all.py", "--dataset", str(folder), "--output", str(output), "--recipe", recipe,
        "--workers", str(len(cores())), "--pack", str(PACK), "--shard-size", str(PACK), "--steps", str(steps),
        "--tracker", "none",
    ]], None)[0].wall_s  # fmt: skip


def ours(folder: Path, count: int, scratch: Path, steps: int, recipe: str) -> tuple[float, float]:
    """(seconds of a run of no steps, seconds of a picture's step when all workers are busy)."""
    train_all(folder, scratch / "warm", 0, recipe)  # the first run reads everything from disk: counted for nobody
    start = train_all(folder, scratch / "none", 0, recipe)
    whole = train_all(folder, scratch / "learned", steps, recipe)
    if whole <= start:
        raise RuntimeError("the steps took no time: other load on this machine came and went; run it again, or --full")
    print(f"ours: start {start:.1f} s, {count} pictures of {steps} steps {whole:.1f} s", flush=True)
    return start, (whole - start) / (count * steps)


def longest(pictures: int, workers: int) -> int:
    """Pictures that the busiest worker learns: shards of a pack go to whoever is free, and the last ones end alone."""
    loads = [0] * workers
    for first in range(0, pictures, PACK):
        loads[loads.index(min(loads))] += min(PACK, pictures - first)
    return max(loads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=50)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--measure", type=int, default=6, help="pictures that the peer is measured on")
    parser.add_argument("--timed", type=int, default=100, help="steps that are measured, where not all are run")
    parser.add_argument("--recipe", default="paper")
    parser.add_argument("--full", action="store_true", help="run every picture with all of its steps")
    parser.add_argument("--script", type=Path, help="diffusers' textual_inversion.py, to be run too")
    parser.add_argument("--write", type=Path, help="also keep the last line in this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch, many = Path(name), len(cores())
        packs = many * PACK  # every worker busy with one pack
        everything = write_pictures(scratch / "all", given.pictures)
        write_pictures(scratch / "some", packs)
        measured = everything if given.full else everything[: math.ceil(given.measure / many) * many]
        threading, theirs = peer(measured, given.steps if given.full else given.timed, scratch / "peer")
        release = cost(
            at_once([peer_command(everything[0][0], everything[0][1][0], FEW, scratch / "peer", "--release")], 1), 1
        )
        theirs_too = given.script and script(given.script, [path for path, _ in everything], given.timed, scratch)
        start, step = ours(scratch / "some", packs, scratch, given.timed, given.recipe)
        whole = start + many * longest(given.pictures, many) * given.steps * step
        if given.full:
            whole = train_all(scratch / "all", scratch / "full", given.steps, given.recipe)
    words = sum(len(names) for _, names in everything) / len(everything)
    per_hour, steady = 3600 * given.pictures / whole, 3600 / (given.steps * step)
    of_script = theirs_too and {
        "ratio": round(per_hour / theirs_too.pictures_per_hour(given.steps), 3),
        "ratio_steady": round(steady / theirs_too.pictures_per_hour(given.steps, start=False), 3),
        "start_s": round(theirs_too.start_s, 2), "step_s": round(theirs_too.step_s, 4),
    }  # fmt: skip
    say({
        "ratio": round(per_hour / theirs.pictures_per_hour(given.steps), 3),
        "ratio_steady": round(steady / theirs.pictures_per_hour(given.steps, start=False), 3),
        "ratio_one_word": round(per_hour / theirs.pictures_per_hour(given.steps, runs=round(words)), 3),
        "ratio_release": round(steady / Cost(0, release.step_s, many).pictures_per_hour(given.steps), 3),
        "pictures_per_hour": round(per_hour, 1), "peer_threading": threading,
        "peer": {"start_s": round(theirs.start_s, 2), "step_s": round(theirs.step_s, 4)},
        "release_step_s": round(release.step_s, 4), "script": of_script or "not run",
        "ours": {"start_s": round(start, 1), "picture_step_s": round(step, 5)},
        "pictures": given.pictures, "steps": given.steps, "words": words, "recipe": given.recipe,
        "how": "every picture run" if given.full else "arithmetic from measured starts and steps",
    }, "benchmarks.peer", given.write, BASE, JUDGE)  # fmt: skip


if __name__ == "__main__":
    main()
