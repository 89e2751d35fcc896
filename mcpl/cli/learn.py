"""One picture: what a sentence means to a base, and learning its words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mcpl.cli.terminal import Device, Model, Words, adjusted_recipe, console, print_metrics
from mcpl.errors import ConfigError
from mcpl.settings import DEFAULT_RECIPE

COLOURS = ("dark_orange", "deep_sky_blue1", "spring_green3", "magenta", "gold1", "medium_purple1")


def learn(
    photo: Annotated[Path, typer.Argument(help="Picture file.")],
    sentence: Annotated[str, typer.Argument(help="Sentence with <placeholders> for the words to learn.")],
    more: Annotated[
        list[str] | None,
        typer.Argument(
            help="More pictures, each with its sentence: equal words are one word.", metavar="[PHOTO SENTENCE]..."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to make (default: learned/PHOTO).")] = None,
    recipe: Annotated[str, typer.Option(help="Recipe name or YAML file.")] = DEFAULT_RECIPE,
    model: Model = None,
    words: Words = None,
    steps: Annotated[int | None, typer.Option(help="Optimisation steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="Pictures drawn from each word.")] = 4,
    device: Device = "auto",
    vram: Annotated[int | None, typer.Option(help="GB of the device: 8, 12 or 24; changes the precision.")] = None,
) -> None:
    """Learn the objects of a picture, or of several that share them, as words: embeddings, overlays, samples and
    metrics in a folder."""
    from mcpl.config import Placement, fitted
    from mcpl.evaluation.signs import advice
    from mcpl.orchestration.single import learn_pictures

    rest = more or []
    if len(rest) % 2:
        raise ConfigError(f"{rest[-1]!r} stands alone: every further picture needs its own sentence after it")
    told = [(photo, sentence), *((Path(rest[i]), rest[i + 1]) for i in range(0, len(rest), 2))]

    chosen = adjusted_recipe(recipe, base=model, words=words, steps=steps, seed=seed)
    target = out or Path("learned") / photo.stem
    chosen, placement = fitted(chosen, Placement(pack=1, samples=samples, device=device), vram)
    if vram:
        console.print(
            f"--vram {vram}: precision {chosen.precision}, so the recipe's fingerprint is {chosen.fingerprint}",
            highlight=False,
        )
    result = learn_pictures(told, target, chosen, placement, console)
    print_metrics(result.row.metrics)
    for line in advice(result.row.metrics):
        console.print(f"[yellow]sign of failure:[/] {line}", highlight=False)
    console.print(
        f"\nLook at [bold]{target / 'sheet.png'}[/]. The words are in {target / 'concepts'}.", highlight=False
    )


def explain(
    sentence: Annotated[str, typer.Argument(help="Sentence with <placeholders>.")],
    recipe: Annotated[str, typer.Option(help="Recipe name or YAML file.")] = DEFAULT_RECIPE,
    model: Model = None,
    words: Words = None,
) -> None:
    """Show tokens, roles and initialisers of a sentence before anything is trained."""
    from mcpl.learning.batch import initializer_words, templates_of
    from mcpl.learning.familiarity import unknown_words
    from mcpl.models import catalogue
    from mcpl.prompts import parse, token_count, tokenize

    chosen = adjusted_recipe(recipe, base=model, words=words)
    parsed = parse(sentence, chosen.words)
    base = catalogue.load(chosen.base, revision=chosen.revision, device="cpu")
    table = Table(title=f"{sentence!r} for base {base.facts.name}", title_justify="left")
    for column in ("word", "role", "concept", "tokens", "starts from"):
        table.add_column(column)
    for word in parsed.words:
        concept = parsed.concepts[word.concept] if word.concept is not None else None
        colour = COLOURS[word.concept % len(COLOURS)] if word.concept is not None else "dim"
        if word.role == "placeholder":
            tokens = f"{chosen.vectors_per_word} learned"
            names = initializer_words(concept, base, chosen)
            start = ("mean of " if len(names) > 1 else "") + ", ".join(names)
        else:
            tokens, start = " ".join(base.vocabulary.text(piece) for piece in base.vocabulary.pieces(word.text)), ""
        table.add_row(word.text, word.role, concept.slug if concept else "", tokens, start, style=colour)
    console.print(table)
    templates = templates_of([parsed], base, chosen)
    tokenize(parsed, base.vocabulary, chosen.vectors_per_word, templates=templates)  # refuses what is too long
    longest = token_count(parsed, base.vocabulary, chosen.vectors_per_word, templates)
    console.print(
        f"{len(parsed.concepts)} words to learn, {len(templates)} templates, "
        f"at most {longest} of {base.vocabulary.length} tokens",
        highlight=False,
    )
    for word in unknown_words(parsed, base):
        _unknown(word, base)


def _unknown(word: str, base) -> None:
    console.print(
        f"[yellow]'{word}' is no word of base {base.facts.name}: it will say nothing. Use a word that it knows, "
        "or a base that knows yours: --model DIRECTORY",
        highlight=False,
    )
