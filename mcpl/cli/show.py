"""Where words look on a real picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mcpl.cli.generate import all_sources, learned_beside
from mcpl.cli.terminal import Device, Model, console


def show(
    photo: Annotated[Path, typer.Argument(help="Picture file.")],
    sentence: Annotated[str, typer.Argument(help="Sentence; its <marked> words are learned ones.")],
    bank: Annotated[
        list[str] | None, typer.Option("--bank", help="Bank, or a folder of `mcpl learn`; may be given again.")
    ] = None,
    concept: Annotated[list[Path] | None, typer.Option("--concept", help="Word file; may be given again.")] = None,
    registry: Annotated[str | None, typer.Option("--registry", help="NAME, NAME@alias or NAME/version.")] = None,
    id: Annotated[
        list[str] | None,
        typer.Option("--id", help="Take the words of this picture; else of PHOTO, where it was learned from."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write (default: shown/PHOTO).")] = None,
    word: Annotated[list[str] | None, typer.Option("--word", help="Show this word alone; may be given again.")] = None,
    segment: Annotated[
        list[str] | None, typer.Option("--segment", help="Label pixels with this word; else with every object.")
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Share of a map's maximum where its mask begins.")
    ] = 0.5,
    timesteps: Annotated[int, typer.Option(min=1, max=250, help="Time steps to look at.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    model: Model = None,
    device: Device = "auto",
) -> None:
    """Show where every word looks on a picture: overlays, masks, labels, an animation over time steps, arrays."""
    from mcpl.errors import ConfigError
    from mcpl.notebook import show as looked

    if out is not None and out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file: name a folder")
    sources = all_sources(bank, map(str, concept or ()), registered=[registry] if registry else ())
    if not sources and "<" in sentence and (sources := learned_beside(photo)):
        _note(f"the words are those of {sources[0]}")
    with console.status("looking"):
        looks = looked(
            photo, sentence, sources, base=model, ids=id or (), show=word or (), segment=segment or (),
            threshold=threshold, timesteps=timesteps, seed=seed, device=device, notes=_note,
        )  # fmt: skip
        folder = looks.save(out or Path("shown") / photo.stem)
    seen, table = looks.labels != 255, Table(title=escape(sentence), title_justify="left")
    for column, justify in (("word", "left"), ("mask", "right"), ("label", "right"), ("labelled", "right")):
        table.add_column(column, justify=justify)
    for w, text in enumerate(looks.words):
        label = looks.segmented.index(w) + 1 if w in looks.segmented else None
        labelled = "" if label is None else f"{(looks.labels[seen] == label).mean():.0%}"
        table.add_row(escape(text), f"{looks.masks[w][seen].mean():.0%}", str(label or ""), labelled)
    console.print(table)
    console.print(f"Look at [bold]{escape(str(folder / 'sheet.png'))}[/] and words.webp.", highlight=False)


def _note(line: str) -> None:
    console.print(f"[yellow]note:[/] {escape(line)}", highlight=False)
