"""What the base can reach on each set of Scenes-MC: its pictures of the true names, judged, with 95 % intervals.

    python -m benchmarks.ceilings [--base DIR] [--split dev|test] [--pictures N] [--write docs/results/ceilings.json]

Every scene of a set is told in full by its true names, and the picture that the base draws is judged by what was
asked. A word that was learned perfectly says no more than that; in the -bare sets it has to hold colour and texture
too, so their ceiling is told with them. Overlap cannot be asked for: the occluded sets have one ceiling.

    right                           share of pictures with everything right and nothing else
    shape, colour, count, relation  the same of one trait
    alone                           share right when one object of each picture is asked for by itself
    vae_psnr                        dB of the set's own pictures' round trip through the autoencoder
    usable                          right >= 0.5 by its mean: only such a set may carry a bar

Unnamed shapes have no name: they are told as "thing", which is chance and no ceiling, and a set of them is usable if
its named twin is. No judge reads tissue. Sets of groups are averaged over each group before the interval.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from benchmarks.drawing import GUIDANCE, STEPS, draw, interval, open_base
from mcpl.scenes.benchmark import SETS, SPLITS, BenchmarkRow, BenchmarkSet, rows
from mcpl.scenes.grammar import caption
from mcpl.scenes.judge import WEIGHTS, Judge, matches
from mcpl.scenes.scene import Scene
from mcpl.scenes.training.autoencoder import psnr, round_trip
from mcpl.scenes.training.latents import pictures_to_tensor

SEED = 30_000  # of the noise
LEAST = 0.5  # a set's ceiling, to carry a bar
TRAITS = ("right", "shape", "colour", "count", "relation")
LEGEND = __doc__.split("\n\n", 2)[2].strip()
PAGE = "# Ceilings of Scenes-MC\n\n`python -m benchmarks.ceilings`. {told}\n\n{table}\n\n```text\n{legend}\n```\n"


def measure(base: Path, split: str, pictures: int | None = None, **sampling: Any) -> dict[str, dict[str, Any]]:
    """set -> what the base reaches there; sets of one stream ask for the same and are drawn once."""
    pipe, judge = open_base(base)
    found: dict[str, dict[str, Any]] = {}
    streams: dict[str, dict[str, Any]] = {}
    for name, spec in SETS.items():
        shown = list(rows(name, split))[:pictures]
        if spec.stream not in streams:
            streams[spec.stream] = {} if spec.pool == "tissue" else ceiling(pipe, judge, shown, **sampling)
        told = pictures_to_tensor(np.stack([row.picture for row in shown]))
        found[name] = {
            "pictures": len(shown),
            "told": {"named": "true names", "unnamed": "thing", "tissue": None}[spec.pool],
            **{trait: streams[spec.stream].get(trait) for trait in (*TRAITS, "alone")},
            "vae_psnr": interval(psnr(told, round_trip(pipe.vae, told)).tolist()),
        }
    for name, spec in SETS.items():
        found[name] |= {"ceiling": spec.ceiling, "usable": usable(spec, found)}
    return found


def ceiling(pipe: StableDiffusionPipeline, judge: Judge, shown: Sequence[BenchmarkRow], **sampling: Any):
    """The base's pictures of these scenes, and of one object of each in turn, as the judge sees them."""
    scenes = [row.scene for row in shown]
    lone = [Scene(s.ground, (s.objects[i % len(s.objects)],)) for i, s in enumerate(scenes)]
    verdicts, alone = (
        [matches(reading, scene) for reading, scene in zip(judge.read(drawn), asked, strict=True)]
        for asked, drawn in (
            (each, draw(pipe, [caption(scene) for scene in each], seed=seed, **sampling))
            for each, seed in ((scenes, SEED), (lone, 2 * SEED))
        )
    )
    told = {trait: _interval(shown, [getattr(verdict, trait) for verdict in verdicts]) for trait in TRAITS}
    return told | {"alone": _interval(shown, [verdict.right for verdict in alone])}


def _interval(shown: Sequence[BenchmarkRow], values: Iterable[bool | None]) -> dict[str, float | int] | None:
    """Over pictures, or over the means of groups; None where nothing was asked."""
    pairs = [(row.group or row.id, value) for row, value in zip(shown, values, strict=True) if value is not None]
    means = [np.mean([value for _, value in each]) for _, each in groupby(pairs, key=lambda pair: pair[0])]
    return interval(means) if means else None


def usable(spec: BenchmarkSet, found: dict[str, dict[str, Any]]) -> bool | None:
    """May a bar rest on this set? None where nothing bounds it."""
    return None if spec.ceiling is None else found[spec.ceiling]["right"]["mean"] >= LEAST


def table(found: dict[str, dict[str, Any]]) -> str:
    """The figures in Markdown."""
    heads = ["set", "pictures", "told as", "all right", *TRAITS[1:], "one alone", "VAE, dB", "usable for bars"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, entry in found.items():
        by = "" if entry["ceiling"] in (name, None) else f" (by {entry['ceiling']})"
        cells = [
            name,
            str(entry["pictures"]),
            {"thing": "no name: thing", None: "no name, no judge"}.get(entry["told"], entry["told"]),
            *(_cell(entry[trait]) for trait in (*TRAITS, "alone")),
            f"{entry['vae_psnr']['mean']:.1f}",
            {True: "yes", False: "**no**", None: "no ceiling"}[entry["usable"]] + by,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: dict[str, float | int] | None) -> str:
    return "-" if value is None else f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=WEIGHTS.parent)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--pictures", type=int, help="only so many of each set, from its first on")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--write", type=Path, help="keep the figures here (JSON), and the table beside them (.md)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = measure(args.base, args.split, args.pictures, steps=args.steps, guidance=args.guidance)
    how = {"base": args.base.resolve().name, "split": args.split, "steps": args.steps, "guidance": args.guidance}
    told = f"Base {how['base']}, {how['split']} split, {how['steps']} steps, guidance {how['guidance']:g}."
    record = json.dumps(how | {"sets": found})
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(record + "\n")
        args.write.with_suffix(".md").write_text(PAGE.format(told=told, table=table(found), legend=LEGEND))
    print(f"{told}\n\n{table(found)}\n")
    print(record)


if __name__ == "__main__":
    main()
