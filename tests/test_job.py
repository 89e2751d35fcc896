"""From stored bytes to bank rows on the tiny base: one row per example, in order, whatever is wrong with it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mcpl.config import Placement, Recipe
from mcpl.data.bank import decode, encode
from mcpl.errors import PackTooLarge
from mcpl.evaluation.metrics import METRICS
from mcpl.evaluation.signs import SIGNS
from mcpl.learning.learner import Learner
from mcpl.orchestration import memory
from mcpl.orchestration.job import Runner
from mcpl.recipes import adjust, load
from mcpl.types import Example, Pack

RECIPE = Recipe(name="test", precision="float64", steps=4, batch=2, probe_every=2, probe_timesteps=3, lr=0.05)


def png(array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def example(i: int, text: str = "a red <star> left of a blue <ring>", **more) -> Example:
    rng = np.random.default_rng(i)
    return Example(f"picture/{i}", png(rng.integers(0, 255, (20, 24, 3))), text, **more)


@pytest.fixture
def runner(tiny):
    return Runner(RECIPE, Placement(pack=3), model=tiny)


def test_one_row_per_example_in_order_with_reasons(runner):
    examples = [
        example(0),
        Example("broken", b"not a picture", "a <star>"),
        example(2, "no mark here"),
        example(3, "a <star> and a <star>"),
        example(4, "a <moon>"),
        example(5, "<x> " + "and a red disc " * 12),
    ]
    seen = []
    rows = runner(examples, on_done=seen.append)
    assert [r.id for r in rows] == [e.id for e in examples] == [r.id for r in seen]
    assert [r.status for r in rows] == ["learned", "failed", "failed", "failed", "learned", "failed"]
    assert "placeholder" in rows[2].reason and "twice" in rows[3].reason and "tokens" in rows[5].reason
    assert all("\n" not in r.reason for r in rows if r.reason)


def test_a_row_survives_the_bank(runner):
    (row,) = runner([example(0)])
    (back,) = decode(encode([row]))
    assert back.provenance == row.provenance and back.metrics == pytest.approx(row.metrics)
    for ours, theirs in zip(row.learned.concepts, back.learned.concepts, strict=True):
        assert torch.equal(ours.vectors.float(), theirs.vectors)
        assert (ours.attention - theirs.attention).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("pack", [1, 2, 5])
def test_pack_size_changes_no_row(tiny, pack):
    examples = [example(i) for i in range(5)]
    expected = Runner(RECIPE, Placement(pack=3), model=tiny)(examples)
    for ours, theirs in zip(Runner(RECIPE, Placement(pack=pack), model=tiny)(examples), expected, strict=True):
        assert ours.provenance == theirs.provenance
        for a, b in zip(ours.learned.concepts, theirs.learned.concepts, strict=True):
            assert (a.vectors - b.vectors).abs().max() < 1e-9


def test_a_bad_neighbour_changes_nothing(tiny):
    alone = Runner(RECIPE, Placement(pack=4), model=tiny)([example(0)])
    beside = Runner(RECIPE, Placement(pack=4), model=tiny)([Example("x", b"", "a <star>"), example(0)])
    for a, b in zip(alone[0].learned.concepts, beside[1].learned.concepts, strict=True):
        assert (a.vectors - b.vectors).abs().max() < 1e-9


def test_the_seed_is_the_pictures_own(tiny):
    one = Runner(RECIPE, Placement(), model=tiny)([example(0)])[0]
    other = Runner(RECIPE.model_copy(update={"seed": 1}), Placement(), model=tiny)([example(0)])[0]
    assert not torch.equal(one.learned.concepts[0].vectors, other.learned.concepts[0].vectors)
    assert one.provenance.key != other.provenance.key


def test_listed_nouns_are_learned_and_captions_without_them_skipped(tiny):
    runner = Runner(RECIPE.model_copy(update={"words": "list:star,ring"}), Placement(), model=tiny)
    rows = runner([example(0, "a red star above a ring"), example(1, "a blue moon")])
    assert [r.status for r in rows] == ["learned", "skipped"]
    assert [c.concept.slug for c in rows[0].learned.concepts] == ["star", "ring"]


def test_all_words_are_learned(tiny):
    runner = Runner(RECIPE.model_copy(update={"words": "all"}), Placement(), model=tiny)
    (row,) = runner([example(0, "red star above a ring")])
    assert [c.concept.slug for c in row.learned.concepts] == ["red", "star", "above", "ring"]


def test_masks_are_scored_and_never_learned_from(tiny):
    mask = np.zeros((20, 24))
    mask[:10] = 255
    masks = {"star": png(mask), "ring": png(255 - mask)}
    with_masks, without = Runner(RECIPE, Placement(), model=tiny)([example(0, masks=masks), example(0)])
    assert {"attention_iou", "assignment", "pointing_game", "attention_iou_best_permutation"} <= set(with_masks.metrics)
    assert "attention_iou" not in without.metrics
    assert set(with_masks.metrics) <= set(METRICS) | {f"sign_{name}" for name in SIGNS}
    for a, b in zip(with_masks.learned.concepts, without.learned.concepts, strict=True):
        assert (a.vectors - b.vectors).abs().max() < 1e-9


def test_pictures_that_share_words_are_one_job(tiny):
    """MCPL-diverse from stored bytes: two pictures, <star> in both, one row learned for it."""
    runner = Runner(RECIPE, Placement(), model=tiny)
    pair = [example(0, "a red <star> above a <box>"), example(1, "a <ring> below a <star>")]
    job = runner.prepare_set("pair", pair)
    assert [c.slug for c in job.concepts] == ["star", "box", "ring"] and len(job.latents) == 2
    (learned,) = Learner(tiny, Pack((job,)), RECIPE).run()
    assert len(learned.concepts) == 3 and learned.job_id == "pair"
    alone = runner.prepare(pair[0])
    assert torch.equal(alone.latents[0], job.latents[0])


def test_given_masks_reach_the_recipes_that_need_them_and_no_other(tiny):
    mask = np.zeros((20, 24))
    mask[:10] = 255
    masks = {"star": png(mask), "ring": png(255 - mask)}
    given = adjust(load("break-a-scene"), steps=2, probe_every=2, probe_timesteps=2)
    with_masks, without = Runner(given, Placement(), model=tiny)([example(0, masks=masks), example(0)])
    assert with_masks.status == "learned"
    assert without.status == "failed" and "learns from given masks" in without.reason
    assert Runner(RECIPE, Placement(), model=tiny).prepare(example(0, masks=masks)).masks is None


def test_a_damaged_mask_costs_only_its_own_score(tiny):
    good = np.zeros((20, 24))
    good[:10] = 255
    masks = {"star": b"no picture", "ring": png(good)}
    (row,) = Runner(RECIPE, Placement(), model=tiny)([example(0, masks=masks)])
    assert row.status == "learned" and "attention_iou" in row.metrics and "assignment" not in row.metrics


class SmallDevice:
    """The tiny base on a device that holds at most `rows` rows."""

    def __init__(self, model, rows):
        self._model, self._rows, self.refused = model, rows, 0

    def __getattr__(self, name):
        return getattr(self._model, name)

    def predict(self, noisy, *rest):
        if len(noisy) > self._rows:
            self.refused += 1
            raise torch.OutOfMemoryError("out of memory")
        return self._model.predict(noisy, *rest)


def test_a_pack_too_large_is_halved_and_learns_the_same(tiny):
    examples = [example(i) for i in range(5)]
    expected = Runner(RECIPE, Placement(pack=5), model=tiny)(examples)
    small = SmallDevice(tiny, rows=4)
    rows = Runner(RECIPE, Placement(pack=5), model=small)(examples)
    assert small.refused > 0
    for ours, theirs in zip(rows, expected, strict=True):
        assert (ours.learned.concepts[0].vectors - theirs.learned.concepts[0].vectors).abs().max() < 1e-9


def test_after_one_failure_the_packs_are_smaller(tiny):
    small = SmallDevice(tiny, rows=4)
    runner = Runner(RECIPE, Placement(pack=4), model=small)
    runner([example(i) for i in range(12)])
    assert runner.most == 2 and small.refused == 1  # two rows each: four pictures do not fit, two do


def test_the_pack_is_chosen_by_what_a_step_needs(tiny, monkeypatch):
    examples = [Example("bad", b"", "a <star>"), *(example(i) for i in range(5))]
    expected = Runner(RECIPE, Placement(pack=1), model=tiny)(examples)
    auto = Runner(RECIPE, Placement(pack="auto"), model=tiny)
    job = auto.prepare(examples[1])
    one, two = (memory.step_bytes(tiny, [job] * n, RECIPE) for n in (1, 2))
    assert one < two < 2.2 * one
    monkeypatch.setattr(memory, "free_bytes", lambda *_: int((one + 3.5 * (two - one)) / memory.SHARE))  # four fit
    packs = []
    monkeypatch.setattr(
        auto, "outcomes", lambda pack, own=auto.outcomes, **how: packs.append(len(pack)) or own(pack, **how)
    )
    rows = auto(examples)
    assert (auto.most, packs) == (4, [3, 3])
    for ours, theirs in zip(rows[1:], expected[1:], strict=True):
        assert (ours.learned.concepts[0].vectors - theirs.learned.concepts[0].vectors).abs().max() < 1e-9


def test_packs_that_fit_by_hand():
    gigabyte = 10**9
    assert memory.fitting_pack(3 * gigabyte, 5 * gigabyte, 20 * gigabyte) == 7  # 16 GB may be used: 3 + 6 x 2 = 15
    assert memory.fitting_pack(3 * gigabyte, 5 * gigabyte, gigabyte) == 1  # the device itself will say no
    shared = [memory.free_bytes(torch.device("cpu"), Placement(workers=n)) for n in (1, 4)]
    assert shared[0] / 8 < shared[1] < shared[0] / 2


def test_a_picture_that_never_fits_is_said_so(tiny):
    with pytest.raises(PackTooLarge, match="does not fit"):
        Runner(RECIPE, Placement(), model=SmallDevice(tiny, rows=1))([example(0)])


def test_samples_are_drawn_on_request(tiny):
    (outcome,) = Runner(RECIPE, Placement(samples=2), model=tiny).outcomes([example(0)])
    assert set(outcome.evaluation.alone) == {"star", "ring"}
    assert outcome.evaluation.together.shape == (2, 16, 16, 3)
    assert outcome.evaluation.together.dtype == torch.uint8
