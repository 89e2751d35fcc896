"""Figures hold what they say: heat where attention is, pixels as they were, nothing clipped."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mcpl.prompts import parse
from mcpl.report import figures
from mcpl.report.figures import PAPER, WORD_COLOURS, Shown, ShownWord
from mcpl.types import BankRow, Concept, CurvePoint, LearnedConcept, LearnedConcepts, Provenance

TEXT = "a red <star>, a striped <ring> and a <board> on a very wide ground that goes on and on behind them all"


def spot(row: int, column: int, size: int = 8) -> np.ndarray:
    attention = np.full((size, size), 0.05, np.float32)
    attention[row, column] = 1
    return attention


def noise(side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def shown(count: int = 2, side: int = 32, samples: int = 4, **changes) -> Shown:
    names = ["star", "ring", "board", "cube", "moon"][:count]
    drawn = [noise(side, seed) for seed in range(samples)]
    return Shown(
        **{
            "id": "p1",
            "picture": noise(side),
            "sentence": parse(" and ".join(f"a red <{name}>" for name in names)),
            "words": [ShownWord(name, spot(i, 2), spot(2, i), drawn, drawn, "thing") for i, name in enumerate(names)],
            "together": drawn,
            "metrics": {"assignment_step0": 0.25, "assignment": 0.75, "prompt_similarity": 0.5},
            "curve": [CurvePoint(step, 1 / (step + 1), 0.5, 1.0, 0.1) for step in (0, 25, 50)],
        }
        | changes
    )


def colours(image: Image.Image) -> set[str]:
    return {"#{:02X}{:02X}{:02X}".format(*colour) for _, colour in image.getcolors(1 << 24)}


def clear_edges(image: Image.Image, by: int = 8) -> bool:
    """Nothing touches the page's edge: no label or picture is cut."""
    pixels = np.asarray(image)
    edges = [pixels[:by], pixels[-by:], pixels[:, :by], pixels[:, -by:]]
    return all((edge == 255).all() for edge in edges)


@pytest.mark.parametrize("picture", [np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8), noise(32)])
def test_an_overlay_is_brightest_where_attention_is(picture):
    image = figures.overlay(picture, spot(1, 6), 160)
    assert image.size == (160, 160)
    light = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX))
    assert np.unravel_index(light.argmax(), light.shape) == (1, 6)


def test_a_map_is_never_stretched():
    black = np.zeros((32, 32, 3), np.uint8)
    weak = np.asarray(figures.overlay(black, spot(1, 6) * 0.3)).max()
    assert weak < 0.6 * np.asarray(figures.overlay(black, spot(1, 6))).max()
    assert np.asarray(figures.overlay(black, np.zeros((8, 8)))).max() == 0


def test_small_pictures_keep_their_pixels_and_large_ones_fit():
    picture = noise(32)
    assert (np.asarray(figures._scaled(picture, 96)) == picture.repeat(3, 0).repeat(3, 1)).all()
    assert figures._scaled(picture, 100).size == (100, 100)
    assert figures._scaled(noise(512), 192).size == (192, 192)
    assert figures._scaled(np.zeros((50, 100, 3), np.uint8), 200).size == (200, 100)
    sheet = np.asarray(figures.concept_sheet(shown(picture=picture)))
    big = picture.repeat(12, 0).repeat(12, 1)
    rows, columns = np.where((sheet == big[5, 5]).all(-1))
    assert any((sheet[y - 5 : y + 379, x - 5 : x + 379][1:-1, 1:-1] == big[1:-1, 1:-1]).all()
               for y, x in zip(rows, columns, strict=True) if y >= 5 and x >= 5)  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        shown(1),
        shown(5),
        shown(2, side=512),
        shown(2, samples=0),
        shown(2, samples=1, metrics={}, curve=()),
        shown(3, sentence=parse(TEXT)),
        shown(1, words=[ShownWord("a-very-long-name-for-one-small-word", spot(1, 1))]),
    ],
)
def test_a_sheet_shows_every_word_in_its_colour_and_cuts_nothing(case):
    sheet = figures.concept_sheet(case)
    assert clear_edges(sheet)
    assert set(WORD_COLOURS[: len(case.words)]) <= colours(sheet)
    assert sheet.width >= sheet.height / 2


def test_a_contact_sheet_holds_a_dozen():
    results = [shown(1 + i % 3, sentence=parse(TEXT)) for i in range(12)]
    sheet = figures.results_sheet(results, "assignment")
    assert clear_edges(sheet)
    assert sheet.width <= 2200
    assert figures.results_sheet(results[:1]).width < sheet.width
    assert clear_edges(figures.results_sheet([shown(1, samples=0, metrics={})]))


def test_a_finished_job_is_drawn_as_it_is():
    concept = LearnedConcept(Concept("star", "thing"), np.zeros((1, 4)), spot(1, 1), spot(2, 2))
    learned = LearnedConcepts("p1", (concept,), (), {}, 10, 10)
    row = BankRow("p1", "a <star>", "learned", Provenance("paper", "f", "b", "d", 0, "", "", ""), learned=learned)
    job = SimpleNamespace(looks=[SimpleNamespace(sentence=parse("a <star>"))])
    drawn = {"star": np.stack([noise(32)] * 2)}
    evaluation = SimpleNamespace(alone=drawn, alone_step0={}, together=drawn["star"])
    with_pictures = SimpleNamespace(row=row, job=job, learned=learned, evaluation=evaluation)
    without = SimpleNamespace(row=row, job=job, learned=learned, evaluation=None)
    assert len(figures.show(noise(32), with_pictures).words[0].samples) == 2
    assert figures.sheet_of(noise(32), with_pictures).width > figures.sheet_of(noise(32), without).width


def test_a_groups_sheet_has_a_part_for_each_picture():
    """Each with its own sentence and the words that it names, in the colours that they have everywhere."""
    star, ring = (LearnedConcept(Concept(s), np.zeros((1, 4)), spot(1, 1), spot(2, 2)) for s in ("star", "ring"))
    learned = LearnedConcepts("g", (star, ring), (), {}, 10, 10, by_picture=((star,), (ring,)))
    row = BankRow("g", "a <star>", "learned", Provenance("paper", "f", "b", "d", 0, "", "", ""), learned=learned)
    looks = [SimpleNamespace(sentence=parse(text)) for text in ("a <star>", "a <ring>")]
    outcome = SimpleNamespace(row=row, job=SimpleNamespace(looks=looks), learned=learned, evaluation=None)
    second = figures.show(noise(32), outcome, 1)
    assert [(word.slug, word.colour) for word in second.words] == [("ring", 1)] and second.sentence.text == "a <ring>"
    whole, first = figures.sheet_of(noise(32), outcome, noise(32)), figures.sheet_of(noise(32), outcome)
    assert whole.height > 1.9 * first.height


def test_curves_stand_side_by_side():
    points = [(0, 0.1, 0.2, 0.3), (25, 0.05, 0.1, 0.2)]
    one, three = (figures.curves({f"loss {i}": points for i in range(n)}) for n in (1, 3))
    assert three.width == pytest.approx(3 * one.width, abs=4) and three.height == one.height
    assert WORD_COLOURS[5] in colours(one)


def test_words_stand_out_from_paper_and_from_their_text():
    assert len(set(WORD_COLOURS)) == len(WORD_COLOURS)
    for colour in WORD_COLOURS:
        assert colour != PAPER.upper()
        assert _contrast(colour, figures._ink_on(colour)) > 3.5


def _contrast(one: str, other: str) -> float:
    """WCAG contrast ratio."""

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)
