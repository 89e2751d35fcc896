"""Scenes-MC: frozen sets of pictures for multi-concept prompt learning, with exact masks and truth.

    for row in rows("unnamed-2", "test"):
        row.text, row.picture, row.masks

A set is one line of `SETS`. Its pictures follow from its stream, the split and their number alone, so development and
test share no seed; sets of one stream show the same pictures told otherwise, or the same objects lying otherwise, so
that they can be compared picture by picture. `FROZEN` records every set's digest: change the world, and it is noticed.

Sets of "named" shapes have a ceiling: what the base draws when it is told the true names. Shapes that are "unnamed"
were drawn while the base was trained but only ever called "thing": they are the honest new nouns, have no true name,
and borrow the ceiling of their named twin (`ceiling`). Tissue has neither.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np

from mcpl.errors import ConfigError
from mcpl.scenes.grammar import marked_sentence
from mcpl.scenes.render import render
from mcpl.scenes.scene import Scene, sample_scene
from mcpl.scenes.tissue import TissueScene, render_tissue, sample_tissue
from mcpl.scenes.world import GROUNDS, RELATIONS, Naming, shapes
from mcpl.seeds import derive_seed

Split = Literal["dev", "test"]
SPLITS: tuple[Split, ...] = ("dev", "test")
OCCLUSIONS = (0.0, 0.1, 0.25, 0.5)
NEAR = 0.05  # how far from the asked share a hidden share may lie
FROZEN = Path(__file__).resolve().parents[1] / "assets" / "scenes-mc" / "digests.json"

Drawn = tuple[Scene | TissueScene, ...]
"""The pictures of one group; one picture where there are no groups."""


def _scene(spec: BenchmarkSet, seed: int) -> Drawn:
    return (sample_scene(seed, objects=spec.objects, pool=shapes(spec.pool)),)


def _unseen(spec: BenchmarkSet, seed: int) -> Drawn:
    """The first object is a pair of shape and colour that the base never saw."""
    return (sample_scene(seed, objects=spec.objects, pool=shapes(spec.pool), held_out=True),)


def _occluded(spec: BenchmarkSet, seed: int) -> Drawn | None:
    """Objects that hide each other by every share of OCCLUSIONS within NEAR, and whose colours differ: no outline is
    lost where they meet."""
    ladder = {share: sample_scene(seed, objects=2, pool=shapes(spec.pool), occlusion=share) for share in OCCLUSIONS}
    first, second = ladder[0.0].objects
    fits = first.colour != second.colour and all(abs(hidden(s) - share) <= NEAR for share, s in ladder.items())
    return (ladder[spec.occlusion],) if fits else None


def _diverse(spec: BenchmarkSet, seed: int) -> Drawn:
    """Four pictures of the same two objects: every relation once, every ground once, other places and sizes."""
    rng = np.random.default_rng(seed)
    looks = sample_scene(rng, objects=2, pool=shapes(spec.pool)).objects
    pictures = []
    for relation, ground in zip(rng.permutation(list(RELATIONS)), rng.permutation(list(GROUNDS)), strict=True):
        places = sample_scene(rng, objects=2, relation=str(relation), ground=str(ground)).objects
        objects = tuple(replace(look, x=p.x, y=p.y, size=p.size) for look, p in zip(looks, places, strict=True))
        pictures.append(Scene(str(ground), objects, str(relation)))
    return tuple(pictures)


def _tissue(spec: BenchmarkSet, seed: int) -> Drawn:
    return (sample_tissue(seed),)


@dataclass(frozen=True)
class BenchmarkSet:
    """What a set shows and how its sentences tell it."""

    shows: str
    pool: Naming | Literal["tissue"]
    """which shapes; see the head of this page"""
    stream: str
    """names the seeds; sets of one stream are paired picture by picture"""
    ceiling: str | None
    """the set whose true names bound this one: itself where its shapes are named"""
    objects: int = 2
    adjectives: bool = True
    """tell colour and texture; without, the learned words have to hold the colour"""
    occlusion: float = 0.0
    """share of the first object that the second hides"""
    draw: Callable[[BenchmarkSet, int], Drawn | None] = field(default=_scene, repr=False)
    """a group's pictures from a seed; None where that seed shows nothing fitting"""
    groups: Mapping[Split, int] = field(default_factory=lambda: {"dev": 30, "test": 60})


_GROUPS: Mapping[Split, int] = {"dev": 8, "test": 30}

SETS: dict[str, BenchmarkSet] = {
    "named-2": BenchmarkSet("two objects", "named", "named-2", "named-2"),
    "named-2-bare": BenchmarkSet("the same pictures", "named", "named-2", "named-2", adjectives=False),
    "named-3": BenchmarkSet("three objects", "named", "named-3", "named-3", 3),
    "named-3-bare": BenchmarkSet("the same pictures", "named", "named-3", "named-3", 3, adjectives=False),
    "named-4": BenchmarkSet("four objects", "named", "named-4", "named-4", 4),
    "named-5": BenchmarkSet("five small objects", "named", "named-5", "named-5", 5),
    **{
        f"occluded-{round(100 * share)}": BenchmarkSet(
            f"the second hides {share:.0%} of the first" if share else "the same objects apart",
            "named", "occluded", f"occluded-{round(100 * share)}", occlusion=share, draw=_occluded,
        )
        for share in OCCLUSIONS
    },
    "unseen-2": BenchmarkSet("a shape in a colour it never had", "named", "unseen-2", "unseen-2", draw=_unseen),
    "unnamed-2": BenchmarkSet("two new nouns", "unnamed", "unnamed-2", "named-2"),
    "unnamed-2-bare": BenchmarkSet("the same pictures", "unnamed", "unnamed-2", "named-2", adjectives=False),
    "unnamed-3": BenchmarkSet("three new nouns: all there are", "unnamed", "unnamed-3", "named-3", 3),
    "unnamed-3-bare": BenchmarkSet("the same pictures", "unnamed", "unnamed-3", "named-3", 3, adjectives=False),
    "named-diverse": BenchmarkSet(
        "four pictures share two objects", "named", "named-diverse", "named-diverse", draw=_diverse, groups=_GROUPS
    ),
    "unnamed-diverse": BenchmarkSet(
        "four pictures share two new nouns", "unnamed", "unnamed-diverse", "named-diverse", draw=_diverse,
        groups=_GROUPS,
    ),
    "tissue-2": BenchmarkSet("two kinds of tissue in grey", "tissue", "tissue-2", None, draw=_tissue),
    "tissue-2-bare": BenchmarkSet(
        "the same pictures", "tissue", "tissue-2", None, adjectives=False, draw=_tissue
    ),
}  # fmt: skip


@dataclass(frozen=True)
class BenchmarkRow:
    """One picture of a set."""

    id: str
    group: str | None
    text: str
    picture: np.ndarray
    """[H, W, 3] uint8"""
    masks: Mapping[str, np.ndarray]
    """slug -> [H, W] bool, what is visible of the object"""
    scene: Scene | TissueScene


def rows(name: str, split: Split) -> Iterator[BenchmarkRow]:
    """The pictures of a set in order."""
    spec = find(name)
    for number in range(spec.groups[split]):
        seeds = (derive_seed("scenes-mc", spec.stream, split, number, attempt) for attempt in count())
        drawn = next(group for group in (spec.draw(spec, seed) for seed in seeds) if group)
        id = f"{name}-{split}-{number:04d}"
        for place, scene in enumerate(drawn):
            picture, masks = render_tissue(scene) if isinstance(scene, TissueScene) else render(scene)
            yield BenchmarkRow(
                f"{id}-{place}" if len(drawn) > 1 else id,
                id if len(drawn) > 1 else None,
                marked_sentence(scene, adjectives=spec.adjectives),
                picture,
                {item.shape: mask for item, mask in zip(scene.objects, masks, strict=True)},
                scene,
            )


def find(name: str) -> BenchmarkSet:
    """The line of SETS; ConfigError naming them all where there is no such set."""
    if name not in SETS:
        raise ConfigError(f"{name!r} is no set of Scenes-MC: use {', '.join(SETS)}")
    return SETS[name]


def hidden(scene: Scene) -> float:
    """Share of the first object that later ones hide."""
    whole = render(Scene(scene.ground, scene.objects[:1]))[1][0].sum()
    return float(1 - render(scene)[1][0].sum() / whole)


def digest(set_rows: Iterable[BenchmarkRow]) -> str:
    """16 hex digits of everything that a set says: ids, groups, sentences, pixels, masks, truth."""
    content = hashlib.sha256()
    for row in set_rows:
        parts = [row.id.encode(), (row.group or "").encode(), row.text.encode(), row.picture.tobytes()]
        for slug, mask in row.masks.items():
            parts += [slug.encode(), mask.tobytes()]
        parts.append(truth(row).encode())
        content.update(b"".join(len(part).to_bytes(8, "little") + part for part in parts))
    return content.hexdigest()[:16]


def truth(row: BenchmarkRow) -> str:
    """JSON of the scene that the judge can read; empty where the picture shows another world."""
    return row.scene.to_json() if isinstance(row.scene, Scene) else ""


def frozen() -> dict[str, dict[str, str]]:
    """set -> split -> the digest that was recorded when the set was frozen."""
    return json.loads(FROZEN.read_text()) if FROZEN.exists() else {}


def freeze(names: Iterable[str], split: Split) -> None:
    """Record the sets as they are now."""
    recorded = frozen()
    for name in names:
        recorded.setdefault(name, {})[split] = digest(rows(name, split))
    FROZEN.parent.mkdir(exist_ok=True)
    told = {name: dict(sorted(recorded[name].items())) for name in SETS if name in recorded}
    FROZEN.write_text(json.dumps(told, indent=1) + "\n")


def check_frozen(name: str, split: Split, set_rows: Iterable[BenchmarkRow]) -> None:
    """ConfigError unless these are the pictures that were recorded."""
    found, recorded = digest(set_rows), frozen().get(name, {}).get(split)
    if found != recorded:
        raise ConfigError(
            f"{name} ({split}) is not the frozen set: digest {found}, recorded {recorded}. The rendered world has"
            " changed; undo that, or record the sets anew with --freeze and measure everything on them again"
        )
