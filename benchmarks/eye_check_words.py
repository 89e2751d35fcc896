"""Do the judges see what an eye sees in pictures drawn from learned words? The right-object rate rests on it.

    python -m benchmarks.eye_check_words --draw DIR [--pictures 20]   # learn, draw, choose; an empty form; minutes
    python -m benchmarks.eye_check_words                              # compare; the last line is one JSON object

Words of unnamed shapes are learned by `plain` and `best` from development pictures that the sweep did not see; each
draws some pictures alone. Half of the chosen drawings are such as the judge calls right, half such as it calls wrong,
shuffled: `learned-words.png`, ten a row, and `learned-words.json`, what each was asked to show and how many were drawn.
The form, `eye-check-words.csv`, has a line a drawing: right is yes where it shows one object of the asked shape, and of
the asked colour where one is asked, and nothing else; else no. Keys of the result, each with mean, 95 % interval and n:

    judge_right, judge_wrong    share that the eye calls right, of those that the judge calls right and wrong
    second_right, second_wrong  the same of the second judge, over the same drawings

and `recipes`: of all drawings of each recipe the share that each judge calls right, and what the eye would call right
if it differed from the judge everywhere as it does among the chosen, with what both ends of those intervals make of it.
Intervals are bootstrapped over pictures, whose drawings hang together.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.contact_sheet import Cell, contact_sheet
from benchmarks.drawing import interval
from benchmarks.jobs import SEEN, SET
from benchmarks.learned_words import learned
from benchmarks.recipes import examples
from mcpl.errors import ConfigError
from mcpl.evaluation import judging
from mcpl.evaluation.sampling import alone, generate
from mcpl.models import catalogue
from mcpl.models.base import BaseModel
from mcpl.prompts import parse
from mcpl.recipes import adjust, load
from mcpl.scenes.scene import Scene
from mcpl.scenes.world import PIXELS
from mcpl.seeds import derive_seed
from mcpl.studies import START

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "base"
GRID, ASKED, FORM = "learned-words.png", "learned-words.json", "eye-check-words.csv"
RECIPES = ("plain", "best")
CHOSEN, COLUMNS, SAMPLES, SEED = 100, 10, 8, 0


@dataclass(frozen=True)
class Drawing:
    """A picture uint8 [H, W, 3] of one word, and what it should show."""

    recipe: str
    picture: str
    shape: str
    colour: str | None
    """None where an adjective of the sentence names it"""


def drawings(model: BaseModel, count: int, scratch: Path) -> tuple[list[Drawing], np.ndarray]:
    """Every word of the pictures, drawn SAMPLES times by each recipe."""
    asked, drawn = [], []
    for name in RECIPES:
        recipe = adjust(load(name), base=model.facts.name, **START)
        words = learned(SET, "dev", count, recipe, model, scratch, pack=8, skip=SEEN)
        for example in examples(SET, "dev", count, SEEN):
            sentence, vectors = parse(example.text), {s: word.vectors for s, word in words[example.id].items()}
            concepts = {concept.slug: concept for concept in sentence.concepts}
            seed = derive_seed(SEED, example.id, "samples")
            for slug, item in judging.items(sentence, Scene.from_json(example.truth)).items():
                if slug in vectors:
                    colour = judging.asked_colour(concepts[slug], item)
                    pictures = generate(model, alone(concepts[slug]), vectors, SAMPLES, seed)
                    asked += [Drawing(name, example.id, item.shape, colour)] * SAMPLES
                    drawn += list(pictures.numpy())
            print(f"{name}, {example.id}: drawn", flush=True)
    return asked, np.stack(drawn)


def verdicts(asked: Sequence[Drawing], pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the two judges say of each drawing."""
    both = (judging.judge().read(pictures), judging.second_readings(pictures))
    return tuple(
        np.array([judging.shows(seen, one.shape, one.colour) for one, seen in zip(asked, readings, strict=True)])
        for readings in both
    )


def chosen(right: np.ndarray) -> list[int]:
    """Half of what the judge calls right, half of what it calls wrong, in a random order."""
    generator = np.random.default_rng(SEED)
    halves = [generator.permutation(np.flatnonzero(side))[: CHOSEN // 2] for side in (right, ~right)]
    return [int(n) for n in generator.permutation(np.concatenate(halves))]


def write(base: str, count: int, folder: Path) -> None:
    """Draw and choose; the grid, what was asked, sheets to look at and an empty form."""
    folder.mkdir(parents=True, exist_ok=True)
    model = catalogue.load(base)
    asked, pictures = drawings(model, count, folder)
    first, second = verdicts(asked, pictures)
    some = chosen(first)
    grid = np.zeros((-(-len(some) // COLUMNS) * PIXELS, COLUMNS * PIXELS, 3), np.uint8)
    for place, n in enumerate(some):
        top, left = place // COLUMNS * PIXELS, place % COLUMNS * PIXELS
        grid[top : top + PIXELS, left : left + PIXELS] = pictures[n]
    Image.fromarray(grid).save(folder / GRID, optimize=True)
    drawn = {}
    for name in RECIPES:
        own = np.array([one.recipe == name for one in asked])
        drawn[name] = {"n": int(own.sum()), "judge": int(first[own].sum()), "second_judge": int(second[own].sum())}
    told = {"base_digest": model.facts.digest, "drawn": drawn, "asked": [asdict(asked[n]) for n in some]}
    (folder / ASKED).write_text(json.dumps(told, indent=1) + "\n")
    for start in range(0, len(some), 20):
        cells = [
            Cell(pictures[n], f"{start + i}. {asked[n].colour or 'any colour'} {asked[n].shape}")
            for i, n in enumerate(some[start : start + 20])
        ]
        contact_sheet(cells, folder / f"sheet-{start // 20 + 1}.png", columns=5, zoom=7)
    (folder / FORM).write_text("number,right\n" + "".join(f"{n},\n" for n in range(len(some))))


def read(folder: Path) -> tuple[dict, np.ndarray, np.ndarray]:
    """(what was asked, the pictures, what the eye said). Raises ConfigError for a form that is not filled in."""
    told = json.loads((folder / ASKED).read_text())
    grid = np.asarray(Image.open(folder / GRID).convert("RGB"))
    cells = grid.reshape(-1, PIXELS, COLUMNS, PIXELS, 3).swapaxes(1, 2).reshape(-1, PIXELS, PIXELS, 3)
    lines = list(csv.DictReader((folder / FORM).read_text().splitlines()))
    if len(lines) != len(told["asked"]) or any(line["right"] not in ("yes", "no") for line in lines):
        raise ConfigError(f"{folder / FORM}: expected yes or no for each of {len(told['asked'])} drawings")
    return told, cells[: len(lines)], np.array([line["right"] == "yes" for line in lines])


def compare(told: dict, pictures: np.ndarray, eye: np.ndarray) -> dict:
    """Where the eye and the judges agree, and what that makes of each recipe's rate."""
    result: dict = {}
    asked = [Drawing(**one) for one in told["asked"]]
    numbers = np.unique([one.picture for one in asked], return_inverse=True)[1]
    for name, said in zip(("judge", "second"), verdicts(asked, pictures), strict=True):
        for verdict, which in ((True, "right"), (False, "wrong")):
            own = said == verdict
            result[f"{name}_{which}"] = interval(eye[own].tolist(), clusters=numbers[own].tolist())
    result["recipes"] = {}
    for name, drawn in told["drawn"].items():
        judge, second = (drawn[which] / drawn["n"] for which in ("judge", "second_judge"))
        eyes = [judge * result["judge_right"][at] + (1 - judge) * result["judge_wrong"][at]
                for at in ("mean", "low", "high")]  # fmt: skip
        by_eye = dict(zip(("eye", "eye_low", "eye_high"), (round(each, 4) for each in eyes), strict=True))
        result["recipes"][name] = {"n": drawn["n"], "judge": round(judge, 4), "second_judge": round(second, 4)} | by_eye
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="scenes-v1")
    parser.add_argument("--draw", type=Path, metavar="DIR", help="learn, draw and choose; everything is written here")
    parser.add_argument("--pictures", type=int, default=20, help="to learn from")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where drawings and the filled form lie")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.draw:
        write(given.base, given.pictures, given.draw)
        return
    print(json.dumps(compare(*read(given.folder))))


if __name__ == "__main__":
    main()
