"""The card of a bank: what was learned, on which base, how well, and how to use it elsewhere. Markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from mcpl.data.embeddings import BERT, FAMILIES, SDXL
from mcpl.types import BankRow

UNITS = {
    "fixed_noise_loss": "mean squared error of the noise estimate, lower is better",
    "attention_iou": "intersection over union with the true mask, 0 to 1",
    "attention_iou_best_permutation": "the same with words swapped at will, 0 to 1",
    "assignment": "share of words on their own object, 0 to 1",
    "pointing_game": "share of words whose brightest point is on their object, 0 to 1",
    "right_object": "share of drawn pictures that show the object and nothing else, 0 to 1",
    "right_object_second_judge": "the same pictures as a second judge sees them, of which nothing is learned",
    "leak": "share of drawn pictures that show another object's shape or colour, 0 to 1, lower is better",
    "composition": "share of pictures of a new sentence with two words that show all it says, 0 to 1",
    "word_similarity": "mean cosine similarity between two words' vectors, -1 to 1; near 1 they are alike",
    "prompt_similarity": "largest cosine similarity between two words, -1 to 1; near 1 they are alike",
}
"""Metric -> its unit, where the name does not say it all."""

SHOWN = 50
"""words that a card lists one by one"""


def card(rows: Iterable[BankRow], files: Sequence[str] = ()) -> str:
    """README.md of learned rows; `files`, where they were exported: one path for each word in the rows' order."""
    learned = [row for row in rows if row.learned]
    width = next((c.vectors.shape[1] for row in learned for c in row.learned.concepts), 0)
    family = FAMILIES[width].name if width in FAMILIES else "its own base only"
    words = [(row, concept) for row in learned for concept in row.learned.concepts]
    pictures = sum(len(row.used) or 1 for row in learned)
    lines = [
        *_front(learned),
        f"# {len(words)} learned {'word' if len(words) == 1 else 'words'}",
        "",
        f"Learned with mcpl (Multi-Concept Prompt Learning) from {pictures} pictures with a sentence each. "
        "Only these vectors were learned; the base model is unchanged and is needed to use them.",
        "",
        *_table(("what", "value"), [*_sources(learned), ("fits", family)]),
        "",
        "## Words",
        "",
        *_words(words, files),
        "",
        "## Scores",
        "",
        *_scores(learned),
        "",
        "## Use",
        "",
        *_use(words, files, width),
    ]
    return "\n".join(lines) + "\n"


def _front(rows: Sequence[BankRow]) -> list[str]:
    """What a model hub reads first."""
    sources = sorted({_source(row.provenance.base)[0] for row in rows})
    hub = [f"base_model: {source}" for source in sources if _is_hub_id(source)]
    return ["---", "library_name: diffusers", *hub[:1], "tags:", "- textual_inversion", "- mcpl", "---", ""]


def _source(base: str) -> tuple[str, str | None]:
    """Where diffusers finds a base, and its revision."""
    from mcpl.models.catalogue import CATALOGUE

    entry = CATALOGUE.get(base)
    if entry:
        return entry.source, entry.revision
    source, _, revision = base.partition("@")
    return (source, revision or None) if _is_hub_id(source) else (base, None)


def _is_hub_id(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))


def _loading(pipeline: str, base: str) -> list[str]:
    """Lines of Python that load a base with stock diffusers."""
    source, revision = _source(base)
    if source != base and not _is_hub_id(source):  # shipped inside the package, wherever that is installed
        imported = ["from mcpl.models.catalogue import CATALOGUE"]
        place = f'CATALOGUE["{base}"].source'
    else:
        imported, place = [], f'"{source}"' + (f', revision="{revision}"' if revision else "")
    return [f"from diffusers import {pipeline}", *imported, "", f"pipeline = {pipeline}.from_pretrained({place})"]


def _sources(rows: Sequence[BankRow]) -> list[tuple[str, str]]:
    provenances = [row.provenance for row in rows]
    counted = {
        "base": Counter(f"`{p.base}`, digest `{p.base_digest}`" for p in provenances),
        "recipe": Counter(f"`{p.recipe}`, fingerprint `{p.recipe_fingerprint}`, seed {p.seed}" for p in provenances),
        "optimisation steps": Counter(str(row.learned.steps) for row in rows),
        "code": Counter(f"`{p.commit}`" for p in provenances),
    }
    return [
        (name, value if len(values) == 1 else f"{value} ({count} pictures)")
        for name, values in counted.items()
        for value, count in values.most_common(8)
    ]


def _words(words: Sequence[tuple], files: Sequence[str]) -> list[str]:
    records = [
        (
            f"`{concept.concept.placeholder}`",
            _plain(row.id),
            _plain(row.told_of(concept.concept.slug)),
            str(concept.vectors.shape[0]),
            str(concept.vectors.shape[1]),
            f"{float(concept.vectors.norm(dim=1).mean()):.3f}",
            *([f"`{files[number]}`"] if files else []),
        )
        for number, (row, concept) in enumerate(words[:SHOWN])
    ]
    head = ("word", "picture", "sentence", "vectors", "width (numbers a vector)", "mean length (Euclidean)")
    more = ["", f"and {len(words) - SHOWN} more."] if len(words) > SHOWN else []
    return [*_table((*head, "file") if files else head, records), *more]


def _scores(rows: Sequence[BankRow]) -> list[str]:
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.metrics.items():
            if not math.isnan(value):
                values.setdefault(name, []).append(value)
    means = {name: math.fsum(each) / len(each) for name, each in values.items()}
    records = []
    for name, mean in sorted(means.items()):
        if not name.endswith("_step0"):
            before = means.get(f"{name}_step0")
            shown = "" if before is None else f"{before:.3f}"
            unit = UNITS.get(name, "")
            records.append((name.replace("_", " "), shown, f"{mean:.3f}", unit, str(len(values[name]))))
    if not records:
        return ["None were measured."]
    return _table(("score (mean)", "before learning", "after", "unit", "pictures"), records)


def _use(words: Sequence[tuple], files: Sequence[str], width: int) -> list[str]:
    if not words:
        return ["No word was learned."]
    row, concept = words[0]
    word, path = concept.concept.placeholder, files[0] if files else f"concepts/{concept.concept.slug}/..."
    base = row.provenance.base
    if path.endswith(".pt"):
        slug = concept.concept.slug
        return [f"Put `{path}` into the `embeddings` folder of the web interface; `{slug}` in a prompt is the word."]
    if width == BERT:
        return [
            "Stock diffusers loads no words for this pipeline. With mcpl: `words = mcpl.data.concepts.load(folder)`, "
            "then `mcpl.evaluation.sampling.generate(model, sentence, words, ...)`."
        ]
    if width == sum(SDXL.values()):
        code = [
            *_loading("StableDiffusionXLPipeline", base),
            "",
            "from mcpl.models.stock import load_words  # one call per text encoder, and the sentence's end set right",
            f'load_words(pipeline, ["{path}"])',
        ]
    else:
        code = [
            *_loading("StableDiffusionPipeline", base),
            f'pipeline.load_textual_inversion("{path}", token="{word}")',
        ]
    return ["```python", *code, f'pipeline("a {word}").images[0]', "```"]


def _table(head: Sequence[str], records: Sequence[Sequence[str]]) -> list[str]:
    return [_line(head), _line(["---"] * len(head)), *map(_line, records)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text that stays in its cell: angle brackets are shown, bars and line ends do not end it."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
