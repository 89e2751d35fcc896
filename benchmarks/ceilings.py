"""What the base can reach on each set of Scenes-MC: its pictures of the true names, judged, with 95 % intervals.

    python -m benchmarks.ceilings [--base DIR] [--split dev|test] [--pictures N] [--write docs/results/ceilings.json]

Every scene of a set is told in full by its true names, and the picture that the base draws is judged by what was
asked, by the trained judge and by the second one, which shares no weights and no learning with it. A word that was
learned perfectly says no more than that.

    right                           share of pictures with everything right and nothing else
    shape, colour, count, relation  the same of one trait
    alone                           share right when one object of each picture is asked for by itself
    second_right, second_...        the second judge's verdicts on the same pictures
    vae_psnr                        dB of the set's own pictures' round trip through the autoencoder
    usable                          right >= 0.5 by its mean and the trained judge: only such a set may carry a bar
    doubted                         usable, but right < 0.5 by the second judge
    status                          measured; borrowed from the set in `ceiling`; or unmeasured

Borrowed: the -bare sets are the same pictures, whose words have to hold the colour too, so their ceiling is
told with them; overlap cannot be asked for, so the occluded sets have one ceiling, that of the first. Unnamed shapes
have no name, so their own ceiling is unmeasured: told as "thing" they show what chance does, and a set of them
may stand beside its named twin only: words of unnamed shapes were never brought near the twin's ceiling
(benchmarks.word_ceiling). No judge reads tissue, so its ceiling is unmeasured, too. Sets of
groups are averaged over each group before the interval. Intervals are 95 %: Wilson's, or the bootstrap's where values
lie between 0 and 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from benchmarks.base_gates import judged
from benchmarks.drawing import GUIDANCE, STEPS, draw, interval, judge_of, open_base
from benchmarks.provenance import provenance, say
from mcpl.scenes.benchmark import SETS, SPLITS, BenchmarkRow, rows
from mcpl.scenes.grammar import caption
from mcpl.scenes.judge import WEIGHTS, Judge
from mcpl.scenes.scene import Scene
from mcpl.scenes.training.autoencoder import psnr, round_trip
from mcpl.scenes.training.latents import pictures_to_tensor

SEED = 30_000  # of the noise
LEAST = 0.5  # a set's ceiling, to carry a bar
TRAITS = ("right", "shape", "colour", "count", "relation")
JUDGES = {"": "trained", "second_": "second"}  # prefix of a figure -> whose verdict it is
FIGURES = tuple(prefix + trait for prefix in JUDGES for trait in (*TRAITS, "alone"))
LEGEND = __doc__.split("\n\n", 2)[2].strip()
PAGE = "# Ceilings of Scenes-MC\n\n{origin}\n\n{told}\n\n{table}\n\n```text\n{legend}\n```\n"


def measure(base: Path, split: str, pictures: int | None = None, **sampling: Any) -> dict[str, dict[str, Any]]:
    """set -> what the base reaches there; sets of one stream ask for the same, and only the first of them is drawn."""
    pipe, judge = open_base(base)
    found: dict[str, dict[str, Any]] = {}
    drawn: dict[str, str] = {}  # stream -> its first set
    for name, spec in SETS.items():
        shown = list(rows(name, split))[:pictures]
        first = drawn.setdefault(spec.stream, name)
        figures = ceiling(pipe, judge, shown, **sampling) if first == name and spec.pool != "tissue" else {}
        told = pictures_to_tensor(np.stack([row.picture for row in shown]))
        found[name] = {
            "pictures": len(shown),
            "told": {"named": "true names", "unnamed": "thing", "tissue": None}[spec.pool],
            **{figure: figures.get(figure) for figure in FIGURES},
            "vae_psnr": interval(psnr(told, round_trip(pipe.vae, told)).tolist()),
            "ceiling": first if spec.ceiling == name else spec.ceiling,
        }
    for name, entry in found.items():
        status = "unmeasured" if entry["ceiling"] is None else "measured" if entry["ceiling"] == name else "borrowed"
        entry |= {"status": status, **verdict(entry["ceiling"], found)}
    return found


def ceiling(
    pipe: StableDiffusionPipeline, judge: Judge, shown: Sequence[BenchmarkRow], **sampling: Any
) -> dict[str, dict[str, float | int] | None]:
    """The base's pictures of these scenes, and of one object of each in turn, as both judges see them."""
    scenes = [row.scene for row in shown]
    lone = [Scene(s.ground, (s.objects[i % len(s.objects)],)) for i, s in enumerate(scenes)]
    whole, alone = (
        judged(judge, asked, draw(pipe, [caption(scene) for scene in asked], seed=seed, **sampling))
        for asked, seed in ((scenes, SEED), (lone, 2 * SEED))
    )
    told = {}
    for number, prefix in enumerate(JUDGES):
        for trait in TRAITS:
            told[prefix + trait] = _interval(shown, [getattr(sample.verdicts[number], trait) for sample in whole])
        told[prefix + "alone"] = _interval(shown, [sample.verdicts[number].right for sample in alone])
    return told


def _interval(shown: Sequence[BenchmarkRow], values: Iterable[bool | None]) -> dict[str, float | int] | None:
    """Over pictures, or over the means of groups; None where nothing was asked."""
    pairs = [(row.group or row.id, value) for row, value in zip(shown, values, strict=True) if value is not None]
    means = [np.mean([value for _, value in each]) for _, each in groupby(pairs, key=lambda pair: pair[0])]
    return interval(means) if means else None


def verdict(bound: str | None, found: Mapping[str, dict[str, Any]]) -> dict[str, bool | None]:
    """May a bar rest on a set whose ceiling is that of the set `bound`? `usable` is None where nothing bounds it."""
    if bound is None:
        return {"usable": None, "doubted": None}
    usable = found[bound]["right"]["mean"] >= LEAST
    return {"usable": usable, "doubted": usable and found[bound]["second_right"]["mean"] < LEAST}


def table(found: Mapping[str, dict[str, Any]]) -> str:
    """The figures in Markdown: a line a set and judge, and one line for a set of which nothing was drawn."""
    heads = ["set", "pictures", "told as", "ceiling", "judge", "all right", *TRAITS[1:], "one alone", "VAE, dB"]
    heads.append("usable for bars")
    lines = [_line(heads), "|" + "---|" * len(heads)]
    for name, entry in found.items():
        told = {"thing": "no name: thing", None: "no name, no judge"}.get(entry["told"], entry["told"])
        usable = {True: "yes", False: "**no**", None: "ceiling unmeasured"}[entry["usable"]]
        usable += " (the second judge: under 0.5)" if entry["doubted"] else ""
        if entry["told"] == "thing" and entry["usable"]:
            usable = "beside its named twin only"
        first = [name, str(entry["pictures"]), told, _origin(entry)]
        last = [f"{entry['vae_psnr']['mean']:.1f}", usable]
        if entry["right"] is None:
            lines.append(_line([*first, *["-"] * (len(TRAITS) + 2), *last]))
            continue
        for prefix, judge in JUDGES.items():
            figures = [_cell(entry[prefix + trait]) for trait in (*TRAITS, "alone")]
            lines.append(_line([*first, judge, *figures, *last]))
            first, last = [""] * len(first), [""] * len(last)
    return "\n".join(lines)


def _origin(entry: Mapping[str, Any]) -> str:
    """Was a set's ceiling measured? What is drawn of unnamed shapes is none, for "thing" is chance."""
    if entry["status"] != "borrowed":
        return entry["status"]
    chance = "; figures: chance" if entry["right"] else ""
    return f"borrowed from {entry['ceiling']}" + ("; its own unmeasured" + chance) * (entry["told"] == "thing")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


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
    how = {"split": args.split, "pictures": args.pictures, "steps": args.steps, "guidance": args.guidance}
    seeds = {"noise": SEED, "noise_alone": 2 * SEED, "bootstrap": 0}
    trained = judge_of(args.base)
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        origin = provenance("benchmarks.ceilings", args.base, trained)
        args.write.with_suffix(".md").write_text(page(how | {"sets": found} | origin))
    print(f"{_sampling(how | {'base': args.base.resolve().name})}\n\n{table(found)}\n")
    say(how | {"seeds": seeds, "sets": found}, "benchmarks.ceilings", args.write, args.base, trained)


def page(told: Mapping[str, Any]) -> str:
    """What is beside the figures, from the figures' file."""
    return PAGE.format(origin=_come_from(told), told=_sampling(told), table=table(told["sets"]), legend=LEGEND)


def _sampling(told: Mapping[str, Any]) -> str:
    """One line of what was drawn, and how."""
    return f"Base {told['base']}, {told['split']} split, {told['steps']} steps, guidance {told['guidance']:g}."


def _come_from(origin: Mapping[str, Any]) -> str:
    """One line of where the figures come from."""
    return (
        f"`{origin['command']}`, base `{origin['base_digest']}`, judge `{origin['judge_sha256'][:16]}`, code "
        f"`{origin['commit']}`, {origin['hardware']['cpu']}, torch {origin['hardware']['torch']}."
    )


if __name__ == "__main__":
    main()
