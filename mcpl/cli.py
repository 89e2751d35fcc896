"""mcpl learn photo.png "a brown <bear> on a rolling <board>", and everything around it.

Heavy imports stay inside the commands: `mcpl --help` must not wait for torch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mcpl.errors import ConfigError, MCPLError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.splitlines()[0]
)
dataset_app = typer.Typer(no_args_is_help=True, help="Look at, check and mark image-sentence datasets.")
bank_app = typer.Typer(no_args_is_help=True, help="Look learned words up, show them, describe them.")
concepts_app = typer.Typer(no_args_is_help=True, help="Learned words as files: to other programs, and from them.")
app.add_typer(dataset_app, name="dataset")
app.add_typer(bank_app, name="bank")
app.add_typer(concepts_app, name="concepts")

console = Console()

Model = Annotated[str | None, typer.Option("--model", help="Base model: catalogue name, directory or hub id.")]
Words = Annotated[str | None, typer.Option("--words", help="What is learned: marked, all, or list:FILE of nouns.")]
COLOURS = ("dark_orange", "deep_sky_blue1", "spring_green3", "magenta", "gold1", "medium_purple1")


def main() -> None:
    """Entry point: the four errors of mcpl are one line on stderr and exit code 1."""
    try:
        app(standalone_mode=True)
    except (MCPLError, OSError) as error:  # OSError: a full disk, a folder without rights, a store that is away
        line = " ".join(str(error).split())
        Console(stderr=True).print(f"mcpl: {line}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _recipe(name: str, **changes: object):
    from mcpl.recipes import adjust, load

    return adjust(load(name), **changes)


@app.command()
def learn(
    photo: Annotated[Path, typer.Argument(help="Picture file.")],
    sentence: Annotated[str, typer.Argument(help="Sentence with <placeholders> for the words to learn.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to make (default: learned/PHOTO).")] = None,
    recipe: Annotated[str, typer.Option(help="Recipe name or YAML file.")] = "paper",
    model: Model = None,
    words: Words = None,
    steps: Annotated[int | None, typer.Option(help="Optimisation steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="Pictures drawn from each word.")] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    vram: Annotated[int | None, typer.Option(help="GB of the device: 8, 12 or 24; changes the precision.")] = None,
) -> None:
    """Learn the objects of one picture as words: embeddings, overlays, samples and metrics in a folder."""
    from mcpl.config import Placement, fitted
    from mcpl.evaluation.signs import advice
    from mcpl.orchestration.single import learn_picture

    chosen = _recipe(recipe, base=model, words=words, steps=steps, seed=seed)
    target = out or Path("learned") / photo.stem
    chosen, placement = fitted(chosen, Placement(pack=1, samples=samples, device=device), vram)
    if vram:
        console.print(
            f"--vram {vram}: precision {chosen.precision}, so the recipe's fingerprint is {chosen.fingerprint}",
            highlight=False,
        )
    result = learn_picture(photo, sentence, target, chosen, placement, console)
    _print_metrics(result.row.metrics)
    for line in advice(result.row.metrics):
        console.print(f"[yellow]sign of failure:[/] {line}", highlight=False)
    console.print(
        f"\nLook at [bold]{target / 'sheet.png'}[/]. The words are in {target / 'concepts'}.", highlight=False
    )


@app.command()
def explain(
    sentence: Annotated[str, typer.Argument(help="Sentence with <placeholders>.")],
    recipe: Annotated[str, typer.Option(help="Recipe name or YAML file.")] = "paper",
    model: Model = None,
    words: Words = None,
) -> None:
    """Show tokens, roles and initialisers of a sentence before anything is trained."""
    from mcpl.learning.batch import initializer_words
    from mcpl.learning.familiarity import unknown_words
    from mcpl.models import catalogue
    from mcpl.prompts import TEMPLATES, parse, token_count, tokenize

    chosen = _recipe(recipe, base=model, words=words)
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
    templates = TEMPLATES if chosen.templates == "captions" else TEMPLATES[:1]
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


def _print_metrics(metrics) -> None:
    table = Table(show_header=True, title="how well", title_justify="left")
    for column, justify in (("metric", "left"), ("before", "right"), ("after", "right")):
        table.add_column(column, justify=justify)
    for name, value in metrics.items():
        if not name.endswith("_step0") and not name.startswith("sign_"):
            before = metrics.get(f"{name}_step0")
            table.add_row(name.replace("_", " "), "" if before is None else f"{before:.3f}", f"{value:.3f}")
    console.print(table)


@app.command()
def publish(
    bank: Annotated[str, typer.Argument(help="Bank folder or URI.")],
    name: Annotated[str, typer.Option("--name", help="Registered model name.")],
    alias: Annotated[str | None, typer.Option("--alias", help="Alias to set, such as champion.")] = "champion",
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow server; default MLFLOW_TRACKING_URI.")] = None,
) -> None:
    """Publish a bank as a version of a registered model."""
    from mcpl.orchestration.record import publish_bank

    published = publish_bank(bank, name, alias, tracking_uri)
    console.print(f"{published.name} version {published.version}: {published.load_line}", highlight=False)


@bank_app.command("info")
def bank_info(bank: Annotated[str, typer.Argument(help="Bank folder, file or URI.")]) -> None:
    """Counts, recipes, bases and mean scores of a bank."""
    from mcpl.data.bank import Bank

    opened = Bank.open(bank)
    summary, table = opened.summary(), Table(show_header=False, title=escape(bank), title_justify="left")
    counts = ", ".join(f"{count} {status}" for status, count in summary.status.items())
    table.add_row("pictures", f"{summary.rows} ({counts})")
    table.add_row("words", f"{summary.words}: " + _list([f"{w} x{n}" for w, n in opened.words().most_common()]))
    table.add_row("size", f"{summary.bytes / 1e6:.2f} MB in {summary.parts} parts")
    table.add_row("learning time", f"{summary.seconds:.1f} s")
    for label, counted in (("recipe", summary.recipes), ("base", summary.bases), ("reason", summary.reasons)):
        for name, count in counted.items():
            table.add_row(label, escape(f"{name} ({count})"))
    signs = {n.removeprefix("sign_").replace("_", " "): v for n, v in summary.metrics.items() if n.startswith("sign_")}
    if any(signs.values()):
        table.add_row("signs of failure", _list([f"{name} {share:.0%}" for name, share in signs.items() if share]))
    console.print(table)
    _print_metrics(summary.metrics)


def _list(items: list[str], most: int = 12) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


@bank_app.command("show")
def bank_show(
    bank: Annotated[str, typer.Argument(help="Bank folder or URI.")],
    dataset: Annotated[str, typer.Option("--dataset", help="The dataset that it was learned from.")],
    picture: Annotated[Path, typer.Option("--picture", help="PNG file to make.")] = Path("words.png"),
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Pictures to show.")] = 12,
    samples: Annotated[int, typer.Option(min=0, help="Pictures drawn from each word.")] = 1,
    model: Model = None,
) -> None:
    """A table of pictures and words, and one PNG: where each word looks and what it draws."""
    from mcpl.data.bank import Bank
    from mcpl.data.sources import Dataset
    from mcpl.models import catalogue
    from mcpl.orchestration.showing import shown_rows
    from mcpl.report.figures import results_sheet

    opened = Bank.open(bank)
    base = catalogue.load(model or next(opened.rows()).provenance.base, device="cpu") if samples else None
    shown = list(shown_rows(opened, Dataset.open(dataset), count, base, samples))
    if not shown:
        raise ConfigError(f"{bank}: no picture of {dataset} was learned; `mcpl bank info {bank}` says why")
    picture.parent.mkdir(parents=True, exist_ok=True)
    results_sheet(shown, score="attention_iou").save(picture)
    table = Table(title=f"{len(shown)} pictures of {bank}", title_justify="left")
    scores = [name for name in SHOWN_SCORES if any(name in one.metrics for one in shown)]
    for column in ("picture", "sentence", *(name.replace("_", " ") for name in scores)):
        table.add_column(column, justify="left" if column in ("picture", "sentence") else "right", overflow="fold")
    for one in shown:
        values = ("" if name not in one.metrics else f"{one.metrics[name]:.2f}" for name in scores)
        table.add_row(escape(one.id), escape(one.sentence.text), *values)
    console.print(table)
    console.print(f"Look at [bold]{picture}[/].", highlight=False)


SHOWN_SCORES = ("attention_iou_step0", "attention_iou", "assignment", "right_object_step0", "right_object")


@bank_app.command("search")
def bank_search(
    word: Annotated[str, typer.Argument(help="Learned word; * and ? match as in file names.")],
    bank: Annotated[str | None, typer.Option("--bank", help="Bank folder, file or URI.")] = None,
    registry: Annotated[str | None, typer.Option("--registry", help="NAME, NAME@alias or NAME/version.")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow server; default MLFLOW_TRACKING_URI.")] = None,
    home: Annotated[Path, typer.Option(help="Where the default MLflow database lies.")] = Path("."),
) -> None:
    """Every picture in which a word was learned, from a bank or from the registry."""
    if (bank is None) == (registry is None):
        raise ConfigError("give either --bank URI or --registry NAME@alias")
    table = Table("word", "picture", "sentence", "width", "norm")
    if bank:
        from mcpl.data.bank import Bank

        for hit in Bank.open(bank).search(word):
            table.add_row(hit.slug, escape(hit.id), escape(hit.text), str(hit.vectors.shape[-1]), f"{hit.norm:.3f}")
    else:
        from mcpl.tracking.registry import lookup

        found = lookup(registry, word=word, tracking_uri=tracking_uri, home=home)
        for hit in found.itertuples():
            table.add_row(
                hit.word, escape(hit.image_id), escape(hit.sentence), str(len(hit.vectors[0])), f"{hit.norm:.3f}"
            )
    console.print(table if table.row_count else f"no picture taught the word {word!r}", highlight=False)


@bank_app.command("card")
def bank_card(
    bank: Annotated[str, typer.Argument(help="Bank folder or URI.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Markdown file to write; else it is printed.")] = None,
) -> None:
    """What was learned, on which base, how well and how to use it: a model card in Markdown."""
    from mcpl.data.bank import Bank
    from mcpl.data.card import card

    text = card(Bank.open(bank).rows())
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
    else:
        sys.stdout.write(text)


@concepts_app.command("export")
def concepts_export(
    bank: Annotated[str, typer.Argument(help="Bank folder or URI.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URI for the files and their README.md.")],
    word: Annotated[list[str] | None, typer.Option("--word", help="Learned word, * and ? match; else all.")] = None,
    id: Annotated[list[str] | None, typer.Option("--id", help="Picture id; else all.")] = None,
    file_format: Annotated[str, typer.Option("--format", help="safetensors, or a1111 (a pickle).")] = "safetensors",
) -> None:
    """Write each word as a file of its own, which diffusers and other programs load."""
    from mcpl.data import concepts
    from mcpl.data.bank import Bank

    for path in concepts.export(Bank.open(bank), out, id or (), word or (), file_format):
        console.print(path, highlight=False, markup=False, soft_wrap=True)


@concepts_app.command("import")
def concepts_import(
    files: Annotated[list[Path], typer.Argument(help="Files of diffusers, kohya, OneTrainer, A1111, MCPL's release.")],
    base: Annotated[str, typer.Option("--base", help="Base that they belong to: catalogue name or directory.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URI for concepts/<word>/...")],
    word: Annotated[
        list[str] | None, typer.Option("--word", help="New name, one for each word in the order of the files.")
    ] = None,
) -> None:
    """Bring other programs' words into our layout. No file is ever executed."""
    from mcpl.data import concepts
    from mcpl.models import catalogue

    table = Table("word", "vectors", "width", "fits", "written by", "from", "file")
    for one in concepts.import_files(files, out, base, catalogue.word_width(base), word or ()):
        row = (f"<{one.slug}>", str(one.vectors), str(one.width), one.fits, one.layout, one.source, one.path)
        table.add_row(*map(escape, row))
    console.print(table)


@dataset_app.command("info")
def dataset_info(uri: str) -> None:
    """Counts and sizes, from metadata alone."""
    from mcpl.data.sources import info

    console.print(info(uri), highlight=False)


@dataset_app.command("validate")
def dataset_validate(
    uri: str,
    words: Words = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Base whose text encoder every sentence must fit; not asked without.")
    ] = None,
) -> None:
    """Read every row; report bad ones with their reasons. Exit code 1 where there is one."""
    from mcpl.data.sources import validate

    words = _recipe("paper", words=words).words
    fits = {}
    if model:
        from mcpl.models import catalogue
        from mcpl.prompts import parse, token_count

        vocabulary = catalogue.load(model, device="cpu").vocabulary
        fits = {
            "token_length": lambda text: token_count(parse(text, words), vocabulary),
            "token_limit": vocabulary.length,
        }
    report = validate(uri, words, **fits)
    console.print(report, highlight=False)
    if not report.ok:
        raise typer.Exit(1)


@dataset_app.command("mark")
def dataset_mark(
    uri: str,
    nouns: Annotated[Path, typer.Option("--nouns", help="Text file, one noun a line.")],
    out: Annotated[
        str | None, typer.Option("--out", help="Where the marked dataset goes; only a report without.")
    ] = None,
) -> None:
    """Put listed nouns of plain captions in <angle brackets>; report what was found and missed."""
    from mcpl.data.sources import mark_dataset
    from mcpl.recipes import nouns_in

    if not nouns.is_file():
        raise ConfigError(f"--nouns {nouns}: no such file")
    console.print(mark_dataset(uri, nouns_in(nouns), out), highlight=False)


if __name__ == "__main__":
    main()
