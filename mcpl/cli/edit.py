"""Change one thing of a picture and leave the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcpl.cli.generate import (
    Banks,
    Concepts,
    Ids,
    Precision,
    Registry,
    Sources,
    all_sources,
    base_of,
    found_words,
    learned_beside,
)  # fmt: skip
from mcpl.cli.terminal import Device, Home, Model, TrackingUri, console
from mcpl.errors import ConfigError, ExampleError


def edit(
    photo: Annotated[Path, typer.Argument(help="Picture file; - draws the picture from the sentence and --seed.")],
    sentence: Annotated[str, typer.Argument(help="What the picture shows, with <learned> words.")],
    sources: Sources = None,
    replace: Annotated[
        list[str] | None, typer.Option("--replace", help='"<bear>=<cat>", "red=blue"; may be given again.')
    ] = None,
    refine: Annotated[str | None, typer.Option(help="The sentence told with more words.")] = None,
    weight: Annotated[list[str] | None, typer.Option("--weight", help='"<bear>=1.5", 0 to 4; again.')] = None,
    local: Annotated[
        list[str] | None, typer.Option("--local", help="Let the change show where this word looks; again.")
    ] = None,
    everywhere: Annotated[bool, typer.Option("--everywhere", help="Let the change show everywhere.")] = False,
    bank: Banks = None,
    concept: Concepts = None,
    registry: Registry = None,
    id: Ids = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for original, edited, mask and sheet.")] = Path(
        "edited"
    ),
    seed: Annotated[int, typer.Option(help="Seed of a drawn original.")] = 0,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Drawn originals, each with the next seed.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="DDIM steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 7.5 is usual for Stable Diffusion.")] = 3.0,
    cross: Annotated[float, typer.Option(min=0, max=1, help="First share of steps in which words look alike.")] = 0.2,
    layout: Annotated[float, typer.Option(min=0, max=1, help="First share of steps that keep self-attention.")] = 0.0,
    threshold: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of a map's peak that is mask.")] = 0.5,
    model: Model = None,
    device: Device = "auto",
    precision: Precision = "float32",
    tracking_uri: TrackingUri = None,
    home: Home = Path("."),
) -> None:
    """Replace, refine or re-weigh words of a picture's sentence, and see only that change in the picture."""
    from mcpl.data.pictures import fit
    from mcpl.data.sources import picture_file
    from mcpl.generation import edit as editing
    from mcpl.generation.saving import save_edited
    from mcpl.orchestration.job import to_pixels

    drawing = str(photo) == "-"
    if not drawing and not photo.is_file():
        raise ExampleError(f"{photo}: no such picture")
    change = _change(sentence, replace or (), refine, weight or (), local or ())
    settings = editing.Editing(
        steps=steps, guidance=guidance, cross=cross, layout=layout, threshold=threshold, local=not everywhere
    )
    given = all_sources(sources, bank, concept, registered=registry)
    if not given and not drawing and (given := learned_beside(photo)):
        console.print(f"the words are those of {given[0]}", highlight=False, markup=False)
    slugs = [concept.slug for each in (change.before, change.after) for concept in each.concepts]
    words = found_words(slugs, given, id or (), tracking_uri, home)
    picture = None if drawing else picture_file(photo)[1]
    base = base_of(words, model, device, precision)
    if picture is None:
        original = editing.drawn(base, sentence, words, range(seed, seed + count), settings)
    else:
        pixels = to_pixels(fit(picture, base.facts.resolution))
        original = editing.inverted(base, sentence, words, pixels[None], settings)
    files = save_edited(editing.edit(base, original, change, words, settings), out)
    console.print(f"Look at [bold]{files[-1]}[/]: before, after, and where the change may show.", highlight=False)


def _change(sentence: str, replace, refine: str | None, weight, local):
    from mcpl.generation.change import asked

    replacements, factors = dict(_pair(each, "--replace") for each in replace), {}
    for each in weight:
        word, number = _pair(each, "--weight")
        try:
            factors[word] = float(number)
        except ValueError:
            raise ConfigError(f"--weight {each!r}: {number!r} is no number") from None
        if not 0 <= factors[word] <= MOST:
            raise ConfigError(f"--weight {each!r}: a factor from 0 to {MOST}")
    return asked(sentence, replacements, refine, factors, local)


MOST = 4
"""times that a word may be attended to: beyond, pictures fall apart"""


def _pair(text: str, option: str) -> tuple[str, str]:
    left, sign, right = text.partition("=")
    if not (sign and left.strip() and right.strip()):
        raise ConfigError(f"{option} {text!r}: write it as OLD=NEW, such as '<bear>=<cat>' or '<bear>=1.5'")
    return left.strip(), right.strip()
