"""Defects of the official release that only show where picture, sentence and model meet. The others are tested where
their mathematics is: 2, 4, 8 and 12 with the masks, 5 with the contrastive term, 11 with prompts, 1 and 10 with the
learner, 14's portraits with pictures."""

from __future__ import annotations

import pytest
import torch

from mcpl.diffusion import bucket_centres
from mcpl.learning.batch import draw_rows, make_job, pack_rows, probe_rows
from mcpl.learning.learner import Learner
from mcpl.learning.settings import LearningSettings
from mcpl.learning.step import Look, attention_mask, probe
from mcpl.models.base import mean_embedding
from mcpl.objectives.objective import Contrastive, Denoising
from mcpl.prompts import TEMPLATES, parse
from mcpl.types import Pack

SETTINGS = LearningSettings(steps=2, lr=0.05, probe_timesteps=10)


@pytest.fixture
def job(tiny, pixels):
    def make(text: str, settings: LearningSettings = SETTINGS):
        return make_job(tiny, "picture", parse(text), pixels(1)[0], settings)

    return make


def test_3_masks_are_cut_at_half_of_a_maps_maximum(job):
    """A pixel at .4 of the maximum is outside; the release's .3 lets it in."""
    made = job("a <star>")
    maps = torch.full((1, 8, 8), 0.4)
    maps[0, 0, 0] = 1.0
    mask = attention_mask(Look(0.0, maps, 0.0), made, SETTINGS.attention_mask.threshold)
    assert mask.sum() == 1 and mask[0, 0, 0] == 1


def test_6_the_contrastive_term_moves_the_words(tiny, job):
    """The release's term hangs on a detached tensor in one branch."""
    settings = SETTINGS.model_copy(
        update={"terms": {"denoising": Denoising(weight=0.0), "contrastive": Contrastive(weight=1.0)}}
    )
    made = job("a red <star> left of a blue <ring>", settings)
    (result,) = Learner(tiny, Pack((made,)), settings).run()
    moved = torch.cat([c.vectors for c in result.concepts]) - made.initial
    assert (moved.abs().amax(dim=1) > 0.01).all(), "both words"


def test_7_maps_are_means_over_the_whole_schedule(tiny, job):
    """Ten looks one by one, each at its own time step, averaged here."""
    made = job("a red <star> left of a blue <ring>")
    rows, total = probe_rows(made, SETTINGS, len(tiny.alphas_cumprod)), len(tiny.alphas_cumprod)
    assert torch.equal(rows.timesteps, bucket_centres(10, total))
    pack = Pack((made,))
    (look,) = probe(tiny, pack, [rows], made.initial, rows_at_once=4)
    singles = [probe(tiny, pack, [rows[i : i + 1]], made.initial, rows_at_once=1)[0].maps for i in range(10)]
    assert torch.allclose(look.maps, torch.stack(singles).mean(dim=0), atol=1e-12)
    assert not torch.allclose(singles[0], singles[-1], atol=1e-6), "one time step is not another"


def test_9_adjectives_stay_words_and_every_placeholder_gets_the_initialiser(tiny, job):
    made = job("a red <star> left of a blue <ring>")
    start = mean_embedding(tiny, tiny.facts.neutral_words)
    assert all(torch.equal(row, start.to(row)) for row in made.initial)
    bound = (made.prompt.concept_ids >= 0) & ~made.prompt.placeholder
    assert bound.sum() == 2 * len(TEMPLATES) and (made.prompt.slot_ids[bound] == -1).all()


@pytest.mark.parametrize("name", ["train", "values", "skateboarding-xyz"])
def test_13_any_word_may_be_a_placeholder(tiny, job, name):
    """Names of attributes crash the release, and words of several token pieces are refused."""
    (result,) = Learner(tiny, Pack((job(f"a red <{name}>"),)), SETTINGS).run()
    assert result.concepts[0].concept.slug == name and result.concepts[0].vectors.isfinite().all()


def test_14_no_row_is_a_mirrored_picture(tiny, job):
    """ "left of" stays left: every row of a step holds the picture's own latents."""
    made = job("a red <star> left of a blue <ring>")
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        rows = draw_rows(made, generator, SETTINGS, len(tiny.alphas_cumprod))
        batch = pack_rows(Pack((made,)), [rows], tiny)
        assert all(torch.equal(row, made.latents) for row in batch.latents)


def test_15_looks_are_at_the_real_sentence(tiny, job):
    made = job("a red <star> left of a blue <ring>")
    rows = probe_rows(made, SETTINGS, len(tiny.alphas_cumprod))
    batch = pack_rows(Pack((made,)), [rows], tiny)
    words = " ".join(tiny.vocabulary.text(id).removesuffix("</w>") for id in batch.token_ids[0, 1:10])
    ring, star = (tiny.vocabulary.text(made.prompt.token_ids[0, at]).removesuffix("</w>") for at in (8, 3))
    assert words == f"a red {star} left of a blue {ring} " + tiny.vocabulary.text(tiny.vocabulary.end)
    assert (batch.slot_ids[:, 3] == 0).all() and (batch.slot_ids[:, 8] == 1).all()
