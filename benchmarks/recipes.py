"""Does `paper` beat `plain`, and `best` beat `paper`? Paired, over pictures and seeds, with intervals.

    python -m benchmarks.recipes [--seeds 5] [--quick] [--split dev --lr 1e-4,3e-4,1e-3] [--base DIR] [--known RAW ...]

Every recipe learns the same pictures of Scenes-MC with the same seeds from the same initialiser: the mean of the named
shapes' words, as long as such a word is, while the shapes themselves were drawn but never named when the base was
trained. A colour that an adjective names is not asked of a word. What is done is written at once; the same command goes
on where it stopped, and --known, given each time, takes what other runs have learned. At the end: `raw.parquet`,
`table.md`, `figure.png`, and a last line of JSON, each recipe's means over all sets:

    right_object, assignment   with _step0 beside them: the initialiser alone, before learning; _second: the same
                               pictures as the second judge sees them, of which nothing is learned
    iou_step0, iou_final, iou_best_permutation
    steps, passes, fixed_noise_loss (of the words kept)
    passes_to_paper            U-Net sample passes, those for masks included, until the loss on fixed noise is as low as
                               `paper` ever has it, over the passes that `paper` needs; the median, where reached
    reached                    share of pictures and seeds where it is

Intervals are 95 %, from a bootstrap that draws pictures with all of their seeds; a difference is taken picture by
picture, and bold where the chance of one as large by luck, corrected for all differences of the table in that column
(Holm), is under .05. --lr tunes: each recipe is run at each rate and named `recipe@rate`. Tune on the dev split only.
--skip leaves out the first pictures of each set: on the test split a choice has seen twenty (docs/test-split.md).
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mcpl.cli.terminal import one_line
from mcpl.config import Placement, Recipe
from mcpl.data.pictures import mask_png, picture_png
from mcpl.errors import ConfigError
from mcpl.evaluation import statistics
from mcpl.evaluation.statistics import SURE, Difference, interval
from mcpl.models import catalogue
from mcpl.orchestration.job import Runner
from mcpl.orchestration.study_report import png
from mcpl.packing import chunks
from mcpl.recipes import adjust, load
from mcpl.report.studies import Score, dots
from mcpl.studies import START
from mcpl.types import BankRow, Example, LearnedConcepts

SETS = ("unnamed-2", "unnamed-2-bare", "unnamed-3", "unnamed-3-bare")
RECIPES = ("plain", "paper", "best")
NAMED = START["initializer"]
REPORTED = {
    "right_object": "right_object",
    "right_object_step0": "right_object_step0",
    "right_object_second": "right_object_second_judge",
    "assignment": "assignment",
    "assignment_step0": "assignment_step0",
    "iou_step0": "attention_iou_step0",
    "iou_final": "attention_iou",
    "iou_best_permutation": "attention_iou_best_permutation",
    "fixed_noise_loss": "fixed_noise_loss",
}
SHOWN = ("right_object", "attention_iou")
"""metrics of the figure, a panel for each set"""
FIGURE = "figure.png"
COMPARED = ("right_object", "right_object_second", "assignment", "iou_final", "fixed_noise_loss")
REFERENCE = "paper"
"""what every other recipe of a table is compared with"""
ALSO = (("best", "plain"), ("best", "combined"), ("combined", "plain"))
"""compared with each other too, where a table has both"""

Row = Mapping[str, object]


def examples(name: str, split: str, count: int | None, skip: int = 0) -> Iterator[Example]:
    """The first pictures of a set after those that are skipped, as a dataset would give them."""
    from mcpl.scenes import benchmark

    for row in islice(benchmark.rows(name, split), skip, None if count is None else skip + count):
        masks = {slug: mask_png(mask) for slug, mask in row.masks.items() if mask.any()}
        yield Example(row.id, picture_png(Image.fromarray(row.picture)), row.text, masks, benchmark.truth(row) or None)


def variants(names: Iterable[str], rates: Sequence[float], **changes: object) -> dict[str, Recipe]:
    """Label -> recipe: each by its name, a file's too, or `name@rate` for each learning rate to be tried."""
    loaded = [load(name) for name in names]
    recipes = {recipe.name: adjust(recipe, **changes) for recipe in loaded}
    if not rates:
        return recipes
    return {f"{name}@{rate:g}": adjust(recipe, lr=rate) for name, recipe in recipes.items() for rate in rates}


MISSED = {"right_object": 0.0, "right_object_second_judge": 0.0, "assignment": 0.0, "attention_iou": 0.0}
"""What words that diverged score."""


def measure(label: str, name: str, row: BankRow, recipe: Recipe) -> Row:
    """One picture as a flat row of the raw table; one that diverged has hit nothing and has no loss."""
    told = {
        "set": name,
        "recipe": label,
        "id": row.id,
        "seed": recipe.seed,
        "reason": row.reason,
        "recipe_fingerprint": recipe.fingerprint,
        "base_digest": row.provenance.base_digest,
        "commit": row.provenance.commit,
        "seconds": row.seconds,
    }
    if row.learned is None:
        return told | MISSED
    return {
        **told,
        **dict(row.metrics),
        "steps": row.learned.steps,
        "passes": row.learned.sample_passes,
        **{name: value for name, value in curve(row.learned, recipe).items() if name != "id"},
    }


def curve(learned: LearnedConcepts, recipe: Recipe) -> dict:
    """What `speed` reads: the loss on fixed noise over U-Net passes of a row, looks included."""
    looks = enumerate(learned.curve, start=1)
    return {
        "id": learned.job_id,
        "curve_passes": [point.step * recipe.batch + look * recipe.probe_timesteps for look, point in looks],
        "curve_losses": [point.fixed_noise_loss for point in learned.curve],
    }


def measured(label: str, name: str, runner: Runner, pack: Sequence[Example]) -> list[Row]:
    """A pack, learned and scored."""
    return [measure(label, name, row, runner.recipe) for row in runner(pack)]


def run(
    recipes: Mapping[str, Recipe], sets: Sequence[str], split: str, count: int | None, seeds: int,
    placement: Placement, raw: Path, others: Sequence[Path] = (), skip: int = 0,
    learn: Callable[[str, str, Runner, Sequence[Example]], list[Row]] = measured,
) -> list[Row]:  # fmt: skip
    """Learn whatever neither `raw` nor the tables of `others` hold yet; every row of this plan, in its order.

    `learn` gives a pack's rows, each with its id, recipe_fingerprint and base_digest.
    """
    pictures_of = {name: list(examples(name, split, count, skip)) for name in sets}  # a wrong name fails here
    model = catalogue.load(next(iter(recipes.values())).base, device=placement.device)
    known = {_key(row): row for path in others for row in pq.read_table(path).to_pylist()}
    known |= {_key(row): row for row in recorded(raw)}
    plan: list[tuple] = []
    for name, pictures in pictures_of.items():
        for seed in range(seeds):
            for label, recipe in recipes.items():
                own = adjust(recipe, seed=seed)
                keys = {example.id: (own.fingerprint, model.facts.digest, example.id) for example in pictures}
                plan += [(label, key) for key in keys.values()]
                left = [example for example in pictures if keys[example.id] not in known]
                runner = Runner(own, placement, model)
                for pack in chunks(left, placement.pack):
                    started = time.monotonic()
                    fresh = learn(label, name, runner, pack)
                    known |= {_key(row): row for row in fresh}
                    record(raw, *fresh)
                    print(f"{name} seed {seed} {label}: {len(fresh)} in {time.monotonic() - started:.0f} s", flush=True)
    return [{**known[key], "recipe": label} for label, key in plan]


def _key(row: Row) -> tuple:
    return row["recipe_fingerprint"], row["base_digest"], row["id"]


def record(raw: Path, *rows: Row) -> None:
    """Add rows to a file of lines; each begins its own, so that one that was cut short ends there."""
    with raw.open("a") as file:
        file.writelines("\n" + json.dumps(row) for row in rows)


def recorded(raw: Path) -> Iterator[Row]:
    """Rows of earlier runs; a line that was cut short is left out."""
    for line in raw.read_text().splitlines() if raw.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def by_picture(rows: Iterable[Row], metric: str) -> dict[str, float]:
    """Mean over the seeds of each picture that has the metric."""
    return statistics.by_picture((_picture(row), row[metric]) for row in rows if row.get(metric) is not None)


def _picture(row: Row) -> str:
    """What a row shows: a set told otherwise (`-bare`) shows the same pictures."""
    return str(row["id"]).replace("-bare-", "-")


def difference(rows: Sequence[Row], first: str, second: str, metric: str) -> Difference:
    """first - second, picture by picture."""
    return statistics.difference(
        *(by_picture((row for row in rows if row["recipe"] == which), metric) for which in (first, second))
    )


def paired(rows: Iterable[Row], label: str, against: str) -> list[tuple[Row, Row]]:
    """Rows of two recipes for each picture and seed that both have a curve of."""
    finished = [row for row in rows if row.get("curve_losses")]
    runs = {which: {(r["id"], r["seed"]): r for r in finished if r["recipe"] == which} for which in (label, against)}
    return [(runs[label][key], runs[against][key]) for key in sorted(runs[label].keys() & runs[against].keys())]


def passes_to(goal: float, row: Row) -> int | None:
    """Passes after which a row's loss on fixed noise is no higher; None where it never is."""
    curve = zip(row["curve_passes"], row["curve_losses"], strict=True)
    return next((passes for passes, loss in curve if loss <= goal), None)


def speed(rows: Sequence[Row], label: str, against: str) -> tuple[float | None, float | None]:
    """(median passes to the other's least loss on fixed noise over its own, share where it is reached)."""
    ratios = []
    for ours, theirs in paired(rows, label, against):
        goal = min(theirs["curve_losses"])
        hit, needed = passes_to(goal, ours), passes_to(goal, theirs)
        ratios.append(None if hit is None else hit / needed)
    reached = [ratio for ratio in ratios if ratio is not None]
    if not ratios:
        return None, None
    return (float(np.median(reached)) if reached else None), len(reached) / len(ratios)


def summary(rows: Sequence[Row], label: str, against: str) -> dict[str, float | None]:
    """Means of one recipe: pictures count alike."""
    own = [row for row in rows if row["recipe"] == label]
    found = {name: list(by_picture(own, metric).values()) for name, metric in REPORTED.items()}
    found |= {name: list(by_picture(own, name).values()) for name in ("steps", "passes")}
    means = {name: round(float(np.mean(values)), 4) if values else None for name, values in found.items()}
    means["passes_to_paper"], means["reached"] = speed(rows, label, against)
    return means


def table(rows: Sequence[Row], labels: Sequence[str], title: str) -> str:
    """Markdown: means with intervals, gains over step 0, paired differences; each set apart, then all together."""
    out = io.StringIO()
    print(f"# {title}\n", file=out)
    sets = list(dict.fromkeys(str(row["set"]) for row in rows))
    parts = {name: [row for row in rows if row["set"] == name] for name in sets}
    if len(sets) > 1:
        parts["all sets"] = list(rows)
    differences = _differences(parts, labels)
    for name, own in parts.items():
        print(f"## {name}: {len(set(map(_picture, own)))} pictures\n", file=out)
        print("| recipe | right object (before; second judge) | assignment (before) | IoU (before, best permutation) | "
              "loss on fixed noise (before) | steps | passes |\n|---|---|---|---|---|---|---|", file=out)  # fmt: skip
        for label in labels:
            print(_line(label, [row for row in own if row["recipe"] == label]), file=out)
        print("\n| difference | " + " | ".join(c.replace("_", " ") for c in COMPARED) + " |", file=out)
        print("|---" * (len(COMPARED) + 1) + "|", file=out)
        for pair in _compared(labels):
            cells = (differences[name, pair, c] for c in COMPARED)
            print(f"| {' - '.join(pair)} | " + " | ".join(cells) + " |", file=out)
        print(file=out)
        seen = {k for row in own for k in row if k.startswith("sign_")}
        for label in labels:
            shares = {k: by_picture([r for r in own if r["recipe"] == label], k).values() for k in sorted(seen)}
            told = [f"{k[5:].replace('_', ' ')} {np.mean(list(v)):.0%}" for k, v in shares.items() if any(v)]
            print(f"Signs of failure, {label}: {', '.join(told) or 'none'}.", file=out)
        print(file=out)
    return out.getvalue()


def _differences(parts: Mapping[str, Sequence[Row]], labels: Sequence[str]) -> dict[tuple, str]:
    """(part of the table, pair of recipes, what is compared) -> the difference as the table tells it."""
    told: dict[tuple, str] = {}
    for c in COMPARED:
        found = {(name, pair): difference(own, *pair, REPORTED[c])
                 for name, own in parts.items() for pair in _compared(labels)}  # fmt: skip
        for key, one in statistics.corrected(found).items():
            told[*key, c] = f"**{one.interval}**" if one.p < SURE else str(one.interval)
    return told


def _compared(labels: Sequence[str]) -> list[tuple[str, str]]:
    """Which recipes of a table are compared with which; two that are none of these with each other."""
    pairs = [*((label, REFERENCE) for label in labels if label != REFERENCE), *ALSO]
    found = [pair for pair in pairs if set(pair) <= set(labels)]
    return found or ([(labels[1], labels[0])] if len(labels) == 2 else [])


def _line(label: str, rows: Sequence[Row]) -> str:
    def told(metric: str) -> str:
        return str(interval(list(by_picture(rows, metric).values())))

    def mean(metric: str) -> str:
        values = list(by_picture(rows, metric).values())
        return f"{np.mean(values):.3f}" if values else "-"

    return (
        f"| {label} | {told('right_object')} ({mean('right_object_step0')}; {mean('right_object_second_judge')}) | "
        f"{told('assignment')} "
        f"({mean('assignment_step0')}) | {told('attention_iou')} ({mean('attention_iou_step0')}, "
        f"{mean('attention_iou_best_permutation')}) | {told('fixed_noise_loss')} ({mean('fixed_noise_loss_step0')}) | "
        f"{mean('steps')} | {mean('passes')} |"
    )


def figure(rows: Sequence[Row], labels: Sequence[str]) -> Image.Image:
    """What is drawn of a table: a panel for each set and score, a line for each recipe."""
    panels: dict[str, dict[str, Score]] = {}
    for metric in SHOWN:
        for name in dict.fromkeys(str(row["set"]) for row in rows):
            panel = panels[f"{metric}, {name}"] = {}
            for label in labels:
                own = [row for row in rows if row["set"] == name and row["recipe"] == label]
                if values := list(by_picture(own, metric).values()):
                    before = list(by_picture(own, f"{metric}_step0").values())
                    panel[label] = Score(*interval(values), float(np.mean(before)) if before else None)
    return dots(panels, [REFERENCE] if REFERENCE in labels else [])


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """The raw rows, one column for each name that any row has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), path)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--quick", action="store_true", help="2 pictures, 1 seed, 10 steps: only to see that it runs")
    options.add_argument("--split", choices=("dev", "test"), default="test")
    options.add_argument("--sets", default=",".join(SETS))
    options.add_argument("--pictures", type=int, help="of each set (default: all)")
    options.add_argument("--skip", type=int, default=0, help="the first pictures of each set")
    options.add_argument("--recipes", default=",".join(RECIPES), help="names, or YAML files such as best.yaml")
    options.add_argument("--lr", default="", help="comma-separated learning rates to try on the dev split")
    options.add_argument("--initializer", default=NAMED, help="words whose mean all start from, or as in a recipe")
    options.add_argument("--steps", type=int, help="instead of each recipe's own")
    options.add_argument("--samples", type=int, default=4, help="pictures drawn of each word")
    options.add_argument("--base", default="scenes-v1")
    options.add_argument("--known", type=Path, nargs="+", default=(), help="raw.parquet of runs with as many --samples")
    options.add_argument("--pack", type=int, default=6)
    options.add_argument("--device", default="auto")
    options.add_argument("--out", type=Path, default=Path("runs/recipes"))
    given = options.parse_args()
    if given.lr and given.split != "dev":
        options.error("--lr tunes, and tuning is for --split dev")
    if missing := [path for path in given.known if not path.is_file()]:
        raise ConfigError(f"--known {missing[0]}: no such file; name a raw.parquet")
    if given.quick:
        given.sets, given.pictures, given.seeds, given.steps, given.samples = "unnamed-2", 2, 1, 10, 1
    recipes = variants(
        given.recipes.split(","), [float(rate) for rate in given.lr.split(",") if rate],
        initializer=given.initializer, initializer_length="words", base=given.base, steps=given.steps,
    )  # fmt: skip
    given.out.mkdir(parents=True, exist_ok=True)
    placement = Placement(pack=given.pack, samples=given.samples, device=given.device)
    rows = run(
        recipes, given.sets.split(","), given.split, given.pictures, given.seeds, placement,
        given.out / f"raw-{given.split}-{given.samples}.jsonl", given.known, given.skip,
    )  # fmt: skip
    write_parquet(rows, given.out / "raw.parquet")
    skipped = f", the first {given.skip} pictures left out" if given.skip else ""
    seeds = "1 seed" if given.seeds == 1 else f"{given.seeds} seeds"
    starts = {NAMED: "the mean of the named shapes' words", "neutral": "the neutral word"}
    start = starts.get(given.initializer, given.initializer)
    title = f"Recipes on Scenes-MC, {given.split} split{skipped}, {seeds}, base {given.base}, all from {start}"
    text = table(rows, list(recipes), title)
    (given.out / "table.md").write_text(text)
    (given.out / FIGURE).write_bytes(png(figure(rows, list(recipes))))
    print(text)
    print(json.dumps({label: summary(rows, label, REFERENCE) for label in recipes}))


if __name__ == "__main__":
    with one_line("benchmarks.recipes"):
        main()
