"""Bank rows as pictures one can look at: where each word looks, and what it draws, on the picture it came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from mcpl.data.bank import Bank
from mcpl.data.pictures import fit, load_picture
from mcpl.data.sources import Dataset
from mcpl.errors import BankMismatch
from mcpl.evaluation.sampling import alone, generate
from mcpl.models.base import BaseModel
from mcpl.prompts import parse, share_concepts
from mcpl.report.figures import Shown, ShownWord
from mcpl.seeds import derive_seed
from mcpl.types import BankRow, Example, Sentence

SIDE = 512
"""pixels: larger pictures are shrunk before they are drawn"""


def shown_rows(
    bank: Bank, dataset: Dataset, count: int, model: BaseModel | None = None, samples: int = 0
) -> Iterator[Shown]:
    """The first `count` learned rows of a bank with their pictures, in the dataset's order.

    model, samples: the base that draws so many pictures of each word; none are drawn without it. Raises BankMismatch
    where it is not the base that the words were learned with.
    """
    rows = islice((row for row in bank.rows() if row.learned), count)
    for row, examples in paired(rows, dataset):
        if row.shown in examples:
            yield shown(row, examples, model, samples)


def paired(rows: Iterable[BankRow], dataset: Dataset) -> Iterator[tuple[BankRow, dict[str, Example]]]:
    """Every row with the picture that its text tells of and those that its words' maps belong to, by id, in the
    dataset's order; rows of which the dataset lacks some come last, with those that it has."""
    left, met, wanted = {}, {}, {}
    for row in rows:
        left[row.id], met[row.id] = row, {}
        words = row.learned.concepts if row.learned else ()
        for id in {row.shown, *(row.picture_of(word.concept.slug) for word in words)}:
            wanted.setdefault(id, set()).add(row.id)
            met[row.id][id] = None
    examples = dataset.examples()
    while left and (example := next(examples, None)):
        for id in wanted.pop(example.id, ()):
            met[id][example.id] = example
            if None not in met[id].values():
                yield left.pop(id), met.pop(id)
    for id, row in left.items():
        yield row, {picture: example for picture, example in met[id].items() if example}


def shown(row: BankRow, examples: Mapping[str, Example], model: BaseModel | None = None, samples: int = 0) -> Shown:
    """One learned row beside its pictures, found by their ids: the first, and whatever others its words look at."""
    sentence, drawn, together = sentence_of(row), {}, ()
    if model and samples:
        drawn, together = drawings(row, model, samples)
    pictures = {}
    for id, example in examples.items():
        picture = load_picture(example.image)
        pictures[id] = fit(picture, min(SIDE, *picture.size))
    return Shown(
        id=row.id,
        picture=pictures[row.shown],
        sentence=sentence,
        words=[
            ShownWord(
                word.concept.slug,
                word.attention,
                word.attention_step0,
                drawn.get(word.concept.slug, ()),
                picture=pictures.get(row.picture_of(word.concept.slug)),
            )
            for word in row.learned.concepts
        ],
        together=together,
        metrics=row.metrics,
        curve=row.learned.curve,
    )


def drawings(row: BankRow, model: BaseModel, samples: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """`samples` pictures of each word alone, and of the row's whole sentence. [n, H, W, 3] uint8 each

    Raises BankMismatch where the model is not the base that the words were learned with.
    """
    if model.facts.digest != row.provenance.base_digest:
        raise BankMismatch(
            f"the words of {row.id} belong to base {row.provenance.base} {row.provenance.base_digest}, "
            f"not to {model.facts.name} {model.facts.digest}: give --model that base"
        )
    vectors = {word.concept.slug: word.vectors for word in row.learned.concepts}
    sentence, seed = sentence_of(row), derive_seed(row.provenance.seed, row.id, "shown")
    drawn = {c.slug: generate(model, alone(c), vectors, samples, seed).numpy() for c in sentence.concepts}
    return drawn, generate(model, sentence, vectors, samples, seed).numpy()


def sentence_of(row: BankRow) -> Sentence:
    """The row's sentence with the roles that it was learned in, however its words had been chosen."""
    return sentences_of(row)[0]


def sentences_of(row: BankRow) -> tuple[Sentence, ...]:
    """The same of every picture that the row was learned from."""
    if row.used:
        return share_concepts([_read(picture.text, picture.words) for picture in row.used])
    return (_read(row.text, [word.concept.slug for word in row.learned.concepts]),)


def _read(told: str, slugs: Sequence[str]) -> Sentence:
    text = told.lower()
    marked = all(text.count(f"<{slug}>") + text.count(f"<{slug}:") == 1 for slug in slugs)  # listed ones may repeat
    return parse(told, "marked" if marked else "list:" + ",".join(slugs))
