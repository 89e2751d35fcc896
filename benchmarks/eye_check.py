"""Do the judges see what a person sees? A person's verdicts on generated pictures against those of both judges.

    python -m benchmarks.eye_check --sheets DIR     # 100 numbered pictures with prompts, no verdicts, and a form
    python -m benchmarks.eye_check                  # compare docs/base/eye-check.csv; the last line is one JSON object

The form, `eye-check.csv`, has a line a picture: its number; whether it is right (yes or no: every object of the prompt
with its shape, colour and texture, on the asked side, and nothing else); the shapes seen, apart by spaces, "none" for
each thing that is no shape of the world. Its first line names the base and the seeds, so that verdicts are never held
against other pictures. Keys of the result, each with mean, 95 % interval and n:

    judge, second_judge                 share of pictures that the judge and the person both call right, or both wrong
    judge_shapes, second_judge_shapes   share of pictures in which they see the same shapes
    judges                              share on which the two judges agree
    right                               share that the person calls right
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from pathlib import Path

import torch

from benchmarks.base_gates import JUDGES, Sample, judged
from benchmarks.contact_sheet import Cell, contact_sheet
from benchmarks.drawing import GUIDANCE, STEPS, draw, interval, open_base
from mcpl.errors import ConfigError
from mcpl.models.stable_diffusion import files_digest
from mcpl.scenes.grammar import caption
from mcpl.scenes.judge import KINDS, WEIGHTS
from mcpl.scenes.scene import Scene, sample_scene
from mcpl.scenes.world import shapes

SEED = 31_000  # of prompts and noise; not those of the gates
PICTURES, CELLS = 100, 20
FORM = Path(__file__).resolve().parents[1] / "docs" / "base" / "eye-check.csv"
COLUMNS = ("number", "right", "shapes")


def eye_scenes(count: int) -> list[Scene]:
    """The prompts that a person looks at: one and two objects in turn."""
    return [sample_scene([SEED, i], objects=1 + i % 2, pool=shapes("named")) for i in range(count)]


def origin(base: Path, count: int) -> str:
    """First line of a form: which pictures its verdicts are about."""
    return f"# base {files_digest(base)}, {count} pictures, seed {SEED}, {STEPS} steps, guidance {GUIDANCE}"


def write_sheets(base: Path, scenes: list[Scene], folder: Path) -> None:
    """The numbered pictures as sheets of `CELLS`, with prompts and without verdicts, and an empty form."""
    pipe, _ = open_base(base)
    pictures = draw(pipe, [caption(scene) for scene in scenes], seed=SEED)
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(scenes), CELLS):
        span = range(first, min(first + CELLS, len(scenes)))
        cells = [Cell(pictures[i], f"{i}. {caption(scenes[i])}") for i in span]
        contact_sheet(cells, folder / f"eye-{first // CELLS + 1:02}.png", columns=5, zoom=7)
    lines = [origin(base, len(scenes)), ",".join(COLUMNS), *(f"{number},," for number in range(len(scenes)))]
    (folder / FORM.name).write_text("\n".join(lines) + "\n")


def read_form(path: Path, base: Path) -> list[tuple[bool, Counter]]:
    """A person's verdict and shapes for each picture. Raises ConfigError for a form that cannot be compared."""
    if not path.is_file():
        raise ConfigError(f"{path}: no form; `python -m benchmarks.eye_check --sheets DIR` writes the pictures and one")
    first, *lines = path.read_text().splitlines()
    rows = list(csv.DictReader(lines))
    if first != origin(base, len(rows)):
        raise ConfigError(f"{path} is about other pictures ({first}) than this base's ({origin(base, len(rows))})")
    seen = []
    for number, row in enumerate(rows):
        kinds = (row["shapes"] or "").split()
        if row["number"] != str(number) or row["right"] not in ("yes", "no") or not set(kinds) <= set(KINDS):
            wanted = f"number,yes or no,shapes of: {' '.join(KINDS)}"
            raise ConfigError(f"{path}, picture {number}: expected {wanted}; got {','.join(map(str, row.values()))}")
        seen.append((row["right"] == "yes", Counter(kinds)))
    return seen


def compare(person: list[tuple[bool, Counter]], samples: list[Sample]) -> dict[str, dict]:
    """How often the judges agree with the person, and with each other."""
    result = {}
    for number, judge in enumerate(JUDGES):
        said = [(s.verdicts[number].right, Counter(item.shape for item in s.readings[number].objects)) for s in samples]
        result[judge] = interval([p[0] == j[0] for p, j in zip(person, said, strict=True)])
        result[f"{judge}_shapes"] = interval([p[1] == j[1] for p, j in zip(person, said, strict=True)])
    result["judges"] = interval([s.verdicts[0].right == s.verdicts[1].right for s in samples])
    return result | {"right": interval([right for right, _ in person])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=WEIGHTS.parent)
    parser.add_argument("--sheets", type=Path, metavar="DIR", help="draw the pictures and an empty form here")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="how many to draw")
    parser.add_argument("--eyes", type=Path, default=FORM, metavar="FILE", help="a person's verdicts")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.sheets:
        write_sheets(args.base, eye_scenes(args.pictures), args.sheets)
        return
    person = read_form(args.eyes, args.base)
    scenes = eye_scenes(len(person))
    pipe, judge = open_base(args.base)
    samples = judged(judge, scenes, draw(pipe, [caption(scene) for scene in scenes], seed=SEED))
    for number, ((right, kinds), sample) in enumerate(zip(person, samples, strict=True)):
        said = [("person", right, kinds.elements())]
        for who, verdict, reading in zip(JUDGES, sample.verdicts, sample.readings, strict=True):
            said.append((who, verdict.right, (item.shape for item in reading.objects)))
        if len({verdict for _, verdict, _ in said}) > 1:
            told = (f"{who} {'right' if verdict else 'wrong'} ({' '.join(seen)})" for who, verdict, seen in said)
            print(f"{number}. {caption(sample.scene)}: {', '.join(told)}")
    print(json.dumps(compare(person, samples)))


if __name__ == "__main__":
    main()
