"""`mcpl learn`: one picture, or a few that share words; no Ray, no MLflow, one folder at the end or none at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mcpl.config import Placement, Recipe
from mcpl.data import concepts
from mcpl.data.bank import Bank, encode, part_name
from mcpl.data.pictures import fit, load_picture
from mcpl.data.sources import picture_and_sentence
from mcpl.errors import ConfigError, ExampleError
from mcpl.evaluation.evaluate import signs
from mcpl.learning.familiarity import looks_strange, strangeness, unknown_words
from mcpl.orchestration.job import Outcome, Runner, to_pixels
from mcpl.prompts import parse
from mcpl.report import figures
from mcpl.types import Example, Group, LearnedConcepts


def learn_pictures(
    told: Sequence[tuple[Path, str]], out: Path, recipe: Recipe, placement: Placement, console: Console
) -> Outcome:
    """Learn the words of one picture, or of several together, and write `out`: sheet.png, concepts/, README.md,
    samples/, metrics.json, bank/.

    told: (picture, its sentence); equal words of several sentences are one word (MCPL-diverse). Raises ExampleError
    for an unusable picture or sentence, ConfigError for a folder that is in use; nothing is written then, and the
    folder appears whole at the end.
    """
    for photo, _ in told:
        if not photo.is_file():
            raise ExampleError(f"{photo}: no such picture")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file: name a folder")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ConfigError(f"--out {out}: nothing can be written in {above}")
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty: choose another --out, or remove it")
    examples = []
    for photo, text in told:  # what is wrong with them is said before the base is loaded
        examples.append(picture_and_sentence(photo, text))
        parse(text, recipe.words)
    asked = together(examples)
    with console.status("loading the base model"):
        runner = Runner(recipe, placement)
    outcome = learn_job(asked, runner, console)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder = Path(scratch) / out.name
        write(folder, outcome, asked, runner)
        if out.exists():
            out.rmdir()
        shutil.move(folder, out)
    return outcome


def together(examples: Sequence[Example]) -> Example | Group:
    """One picture as it is; several as a group called after the first, files of one name told apart by their place."""
    if len(examples) == 1:
        return examples[0]
    ids = [example.id for example in examples]
    named = [id if ids.count(id) == 1 else f"{id}-{place}" for place, id in enumerate(ids, 1)]
    return Group(ids[0], tuple(replace(example, id=id) for example, id in zip(examples, named, strict=True)))


def learn_job(asked: Example | Group, runner: Runner, console: Console) -> Outcome:
    """Learn a picture, or several together, with advice before it and a bar beside it.

    Raises ExampleError where one of them cannot be used, and where nothing was learned: who names a few pictures by
    hand wants all of them.
    """
    for example in asked.pictures:  # a sentence that does not fit this base is refused before anything is shown
        try:
            runner.prepare(example)
        except ExampleError as error:
            raise ExampleError(f"{example.id}: {error}" if isinstance(asked, Group) else str(error)) from None
    for example in asked.pictures:
        _advise(example, runner, console)
    with _bar(console) as bar:
        task = bar.add_task("learning", total=runner.recipe.steps, seen="")

        def look(learned: list[LearnedConcepts]) -> None:
            bar.update(task, seen=_seen(signs(learned[0], runner.recipe.masks_loss)))

        (outcome,) = runner.outcomes([asked], lambda step: bar.update(task, completed=step), look)
    if outcome.row.status != "learned":
        raise ExampleError(outcome.row.reason or "nothing was learned")
    return outcome


def _seen(found: Mapping[str, float]) -> str:
    """Failure signs as the bar names them while they are there."""
    names = [name.removeprefix("sign_").replace("_", " ") for name, seen in found.items() if seen]
    return f"sign of failure: {', '.join(names)}" if names else ""


def _advise(example: Example, runner: Runner, console: Console) -> None:
    """Name, before training, what the base cannot know, and what would help."""
    base, help_with = runner.model, "a base that knows it would help: --model DIRECTORY or hub id"
    sentence = parse(example.text, runner.recipe.words)
    for word in unknown_words(sentence, base):
        console.print(
            f"[yellow]warning:[/] {word!r} is no word of base {base.facts.name}; {help_with}", highlight=False
        )
    if base.facts.familiar:
        pixels = to_pixels(fit(load_picture(example.image), base.facts.resolution))
        if why := looks_strange(strangeness(base, pixels), base.facts.familiar):
            console.print(
                f"[yellow]warning:[/] the picture is unlike what base {base.facts.name} knows: {why}; {help_with}",
                highlight=False,
            )


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn(),
        TextColumn("[yellow]{task.fields[seen]}"),
        console=console,
    )  # fmt: skip


def sheet(outcome: Outcome, asked: Example | Group, runner: Runner) -> Image.Image:
    """The whole story of a picture, or of each of several."""
    side = runner.model.facts.resolution
    first, *further = (fit(load_picture(example.image), side) for example in asked.pictures)
    return figures.sheet_of(first, outcome, *further)


def write(folder: Path, outcome: Outcome, asked: Example | Group, runner: Runner) -> None:
    """Everything that was learned of a picture, or of several together, into a new folder."""
    evaluation, row = outcome.evaluation, outcome.row
    (folder / "bank").mkdir(parents=True)
    (folder / "bank" / part_name(0)).write_bytes(encode([row]))
    concepts.export(Bank.open(folder / "bank"), folder)
    if evaluation.alone:
        (folder / "samples").mkdir()
        for slug, pictures in evaluation.alone.items():
            _save_row(pictures, folder / "samples" / f"{slug}.png")
        _save_row(evaluation.together, folder / "samples" / "together.png")
    sheet(outcome, asked, runner).save(folder / "sheet.png")
    grouped = {"pictures": [asdict(picture) for picture in row.pictures]} if row.pictures else {}
    story = {
        "picture": row.shown,
        "sentence": row.text,
        **grouped,
        "metrics": dict(row.metrics),
        "curve": [asdict(point) for point in outcome.learned.curve],
        "steps": outcome.learned.steps,
        "sample_passes": outcome.learned.sample_passes,
        "seconds": round(row.seconds, 3),
        "recipe": runner.recipe.model_dump(mode="json"),
        "provenance": asdict(row.provenance),
    }
    (folder / "metrics.json").write_text(json.dumps(story, indent=2) + "\n")


def _save_row(pictures, path: Path, scale_to: int = 128) -> None:
    """[n, H, W, 3] uint8 side by side, a white pixel between them, since grounds are often alike; small pictures
    enlarged without smoothing, so that pixels stay what they are."""
    spaced = np.pad(np.asarray(pictures), ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255)
    side = np.concatenate(list(spaced), axis=1)[:, :-1]
    image = Image.fromarray(side)
    factor = max(1, scale_to // side.shape[0])
    image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(path)
