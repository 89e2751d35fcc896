"""Pictures from learned words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from mcpl.cli.terminal import Device, Home, Model, TrackingUri, console

Sources = Annotated[
    list[str] | None,
    typer.Argument(help="Where the words are: bank, folder of `mcpl learn`, word file, or models:/NAME@alias."),
]
Banks = Annotated[list[str] | None, typer.Option("--bank", help="Bank folder or URI; may be given again.")]
Concepts = Annotated[list[str] | None, typer.Option("--concept", help="Word file, or folder with concepts/; again.")]
Registry = Annotated[list[str] | None, typer.Option("--registry", help="NAME, NAME@alias or NAME/version; again.")]
Ids = Annotated[list[str] | None, typer.Option("--id", help="Take words of this picture only; may be given again.")]
Precision = Annotated[str, typer.Option(help="float32, bfloat16, float16.")]


def generate(
    sentence: Annotated[str, typer.Argument(help="Sentence with <learned> words.")],
    sources: Sources = None,
    bank: Banks = None,
    concept: Concepts = None,
    registry: Registry = None,
    id: Ids = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = Path("generated"),
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Pictures, each with the next seed.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the first picture.")] = 0,
    negative: Annotated[str, typer.Option(help="Sentence to keep away from; learned words are allowed.")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 7.5 is usual for Stable Diffusion.")] = 3.0,
    scheduler: Annotated[str, typer.Option(help="ddim, ddpm, dpm++, euler, unipc ...")] = "ddim",
    attend: Annotated[
        float, typer.Option(min=0, help="Move every learned word to be seen (Attend-and-Excite); begin with 0.02.")
    ] = 0.0,
    columns: Annotated[int | None, typer.Option(min=1, help="Columns of grid.png.")] = None,
    model: Model = None,
    device: Device = "auto",
    precision: Precision = "float32",
    tracking_uri: TrackingUri = None,
    home: Home = Path("."),
) -> None:
    """Draw a sentence with learned words, from several pictures and banks together."""
    from mcpl.generation.generate import Drawing
    from mcpl.generation.generate import generate as draw
    from mcpl.generation.saving import save_generated
    from mcpl.prompts import said

    drawing = Drawing(
        steps=steps, guidance=guidance, scheduler=scheduler, negative=negative, attend=attend
    )  # fmt: skip
    slugs = [c.slug for text in (sentence, negative) if text.strip() for c in said(text).concepts]
    words = found_words(slugs, all_sources(sources, bank, concept, registered=registry), id or (), tracking_uri, home)
    base = base_of(words, model, device, precision)
    made = draw(base, sentence, words, range(seed, seed + count), drawing)
    files = save_generated(made, out, columns)
    console.print(f"Look at [bold]{files[-1]}[/].", highlight=False)


def all_sources(*given: Iterable[str] | None, registered: Sequence[str] | None = None) -> list[str]:
    """Positional sources, banks, word files, and then registered models, in this order."""
    names = (name if name.startswith("models:/") else f"models:/{name}" for name in registered or ())
    return [*(source for own in given for source in own or ()), *names]


def learned_beside(photo: Path) -> list[str]:
    """What `mcpl learn PHOTO` left in its usual place, as a source of words."""
    folder = Path("learned") / photo.stem
    return [str(folder)] if (folder / "bank").is_dir() else []


def found_words(slugs: Collection[str], sources: Sequence[str], ids: Collection[str], tracking_uri, home):
    """The sentence's words, and a line about each name that several share."""
    from mcpl.generation.words import gather

    words, notes = gather(tuple(dict.fromkeys(slugs)), sources, ids, tracking_uri, home)
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    return words


def base_of(words, model: str | None, device: str, precision: str):
    """The base that was asked for, else the one that the words were learned with; refused where they do not fit."""
    from mcpl.config import Recipe
    from mcpl.generation.words import base_for, check_base
    from mcpl.models import catalogue
    from mcpl.orchestration import threads

    name = base_for(words, model) or Recipe().base
    with console.status("loading the base model"):
        base = threads.fitted(lambda: catalogue.load(name, device=device, precision=precision))
    check_base(words.values(), base.facts)
    return base
