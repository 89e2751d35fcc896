"""Two words, learned in two pictures, together in a sentence that neither picture saw: are both there, and right?

    python -m benchmarks.composition [--quick] [--split dev] [--pictures N] [--recipe best] [--attend 0.1]

Of each picture of a set one word is taken, of the next that shows something else another. A new scene of these two
shapes is told by their learned words, in colours drawn anew and another place, and drawn four times; the judge says
whether everything is right and nothing else is there. The ceiling is the same sentence with true names, on the same
noise; unnamed shapes have none and borrow that of their named twin. --attend also draws everything with attention
guidance. What is done is kept and not done again. The last line is JSON: `success`, `ceiling`, their ratio, and each
set's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.contact_sheet import Cell, contact_sheet
from benchmarks.drawing import judge_of
from benchmarks.learned_words import (
    base_folder,
    learned,
    options,
    over_ceiling,
    partners,
    settle,
    with_ceilings,
)  # fmt: skip
from benchmarks.provenance import provenance
from benchmarks.recipes import record, recorded
from mcpl.cli.terminal import one_line
from mcpl.generation.generate import Drawing, generate
from mcpl.generation.words import Words
from mcpl.models import catalogue
from mcpl.models.base import BaseModel
from mcpl.scenes import benchmark
from mcpl.scenes.benchmark import find
from mcpl.scenes.grammar import caption, marked_sentence
from mcpl.scenes.judge import Judge, matches
from mcpl.scenes.scene import Scene, sample_scene
from mcpl.seeds import derive_seed

SAMPLES = 4
SEED = 40_000
SETS = "named-2,unnamed-2"
SHOWN = 60
"""pictures on the sheet"""


def new_scenes(rows: Sequence[Any], split: str) -> list[tuple[str, dict[str, str], Scene]]:
    """(picture, shape -> the picture that its word is taken from, a new scene of both shapes in either order)."""

    def shape(number: int, place: int) -> str:
        return rows[number].scene.objects[place % len(rows[number].scene.objects)].shape

    made = []
    for first, second in partners(len(rows), lambda a, b: shape(a, a) != shape(b, b)):
        sources = {shape(first, first): rows[first].id, shape(second, second): rows[second].id}
        scene = sample_scene(derive_seed("composition", split, rows[first].id), objects=2, pool=tuple(sources))
        made.append((rows[first].id, sources, scene))
    return made


def words_of(sources: Mapping[str, str], bank: Mapping[str, Words]) -> Words:
    """The scene's words, each from its own picture; fewer where a picture was not learned."""
    return {shape: bank[picture][shape] for shape, picture in sources.items() if shape in bank[picture]}


def main() -> None:
    parser = options(__doc__, SETS, "runs/composition")
    parser.add_argument("--attend", type=float, default=0.0, help="also with attention guidance this strong")
    given = parser.parse_args()
    recipe, sets = settle(given)
    model, base = catalogue.load(given.base, device=given.device), base_folder(given.base)
    judge, raw = Judge.load(judge_of(base)), given.out / f"raw-{given.split}.jsonl"
    known, asked, cells = {_key(row): row for row in recorded(raw)}, [], []
    for name in with_ceilings(sets):
        rows = list(benchmark.rows(name, given.split))[: given.pictures]
        bank = learned(name, given.split, given.pictures, recipe, model, given.out, given.pack) if name in sets else {}
        ways = ["learned"] * (name in sets) + ["true"] * (find(name).ceiling == name)
        for first, sources, scene in new_scenes(rows, given.split):
            for told, attend in product(ways, sorted({0.0, given.attend})):
                row = {
                    "set": name, "id": first, "told": told, "attend": attend, "base": model.facts.digest,
                    "words": recipe.fingerprint if told == "learned" else "",
                }  # fmt: skip
                picture = given.out / "pictures" / f"{first}-{told}-{attend:g}.png"
                if _key(row) not in known:
                    own = words_of(sources, bank) if told == "learned" else {}
                    known[_key(row)] = row | draw(model, judge, scene, own, told, attend, picture)
                    record(raw, known[_key(row)])
                asked.append(known[_key(row)])
                if picture.exists():
                    one = asked[-1]
                    verdict = (one["right"][0], f"{told} {sum(one['right'])}/{SAMPLES}")
                    cells.append(Cell(np.asarray(Image.open(picture)), one["sentence"], [verdict]))
    plain, guided = ([row for row in asked if row["attend"] == strength] for strength in (0.0, given.attend))
    found = over_ceiling(plain, sets) | {"sets": {name: over_ceiling(plain, [name]) for name in sets}}
    if given.attend:
        found["attend"] = {"strength": given.attend, **over_ceiling(guided, sets)}
    contact_sheet(cells[:SHOWN], given.out / "sheet.png", columns=6, zoom=5)
    print(f"Look at {given.out / 'sheet.png'}.")
    print(json.dumps({**found, "split": given.split, **provenance("benchmarks.composition", base, judge_of(base))}))


def draw(
    model: BaseModel, judge: Judge, scene: Scene, words: Words, told: str, attend: float, picture: Path
) -> dict[str, Any]:
    """Four pictures of a scene, judged, the first of them kept; a word that could not be learned is a miss."""
    sentence = marked_sentence(scene) if told == "learned" else caption(scene)
    names = [f"<{item.shape}>" if told == "learned" else item.shape for item in scene.objects]
    if told == "learned" and len(words) < len(scene.objects):
        return {"sentence": sentence, "success": 0.0, "right": [False] * SAMPLES}
    made = generate(model, sentence, words, range(SEED, SEED + SAMPLES), Drawing(attend=attend), names)
    pictures = made.pictures.numpy()
    picture.parent.mkdir(exist_ok=True)
    Image.fromarray(pictures[0]).save(picture)
    right = [matches(reading, scene).right for reading in judge.read(pictures)]
    return {"sentence": sentence, "success": sum(right) / SAMPLES, "right": right}


def _key(row: dict) -> tuple:
    return tuple(row[part] for part in ("set", "id", "told", "attend", "base", "words"))


if __name__ == "__main__":
    with one_line("benchmarks.composition"):
        main()
