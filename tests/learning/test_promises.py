"""Every variant, baseline and ingredient keeps the learner's promises: packed equals alone, resumed equals
uninterrupted, the base is unchanged."""

from __future__ import annotations

import pytest
import torch

from mcpl.learning.batch import make_job, make_shared_job
from mcpl.learning.learner import Learner
from mcpl.learning.settings import AttentionMask, EarlyStop, LearningSettings, ReleaseMask
from mcpl.objectives.objective import Attention, BindSuppress, Contrastive, Denoising, ReleaseContrastive
from mcpl.prompts import parse
from mcpl.recipes import RECIPES, adjust
from mcpl.types import Job, Pack

BASE = LearningSettings(
    steps=5,
    lr=0.05,
    probe_every=2,
    probe_timesteps=2,
    batch=3,
    attention_mask=AttentionMask(threshold=0.98),  # a random base's maps are flat
    terms={"denoising": Denoising(), "contrastive": Contrastive(weight=0.1)},
)
GUIDED = {"denoising": Denoising(), "attention": Attention(weight=1.0)}
SETTINGS = {
    "attention loss": {"terms": GUIDED},
    "bind and suppress": {"terms": {"denoising": Denoising(), "bind-suppress": BindSuppress(weight=1.0)}},
    "scheduled": {
        "attention_mask": AttentionMask(threshold=0.98, start=3, outside=0.3),
        "terms": {"denoising": Denoising(), "contrastive": Contrastive(weight=0.1, start=2, ramp=3)},
    },
    "better masks": {
        "attention_mask": AttentionMask(threshold=0.98, refine=2, sharp=True, momentum=0.5, exclusive=True),
        "terms": GUIDED,
    },
    "fixed norm": {"fixed_norm": True, "initializer": "red,blue", "initializer_length": "words"},
    "early stop": {"stop": EarlyStop(patience=1, min_gain=0.02), "lr": 0.3, "probe_every": 1},
    "union sampling": {"union_sampling": 2, "vectors_per_word": 2, "terms": GUIDED},
    "mirrored": {"flips": "always"},
    "given masks": {"attention_mask": AttentionMask(source="given"), "terms": GUIDED},
    "one word": {"sentences": "one-word"},
    "masked objects": {"sentences": "objects-on-black", "attention_mask": None},
    "release": {
        "initialize": "first",
        "attention_mask": ReleaseMask(source="release", threshold=0.999, softmaxes=1),
        "terms": {"denoising": Denoising(area_normalised=False), "release-contrastive": ReleaseContrastive(weight=0.1)},
        "weight_decay": 0.01,
        "stratified_timesteps": False,
    },
}
SENTENCES = (
    "a green striped <cross>, a <disc> and a yellow <square>",
    "<moon>",
)


def masks_of(sentence, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {c.slug: (torch.rand(16, 16, generator=generator) > 0.6).float() for c in sentence.concepts}


def jobs(model, pixels, settings) -> tuple[Job, ...]:
    """One picture each, and a set of two pictures that share <star>."""
    pictures, parsed = pixels(4), [parse(text) for text in SENTENCES]
    single = [
        make_job(model, f"picture-{i}", sentence, pictures[i], settings, masks_of(sentence, i))
        for i, sentence in enumerate(parsed)
    ]
    diverse = [parse("a red <star> <near:above> a <box>"), parse("a <ring> <under:below> a red <star>")]
    masks = [masks_of(sentence, 9 + i) for i, sentence in enumerate(diverse)]
    return (*single, make_shared_job(model, "set", diverse, pictures[2:], settings, masks))


@pytest.fixture(params=SETTINGS, scope="module")
def settings(request) -> LearningSettings:
    return LearningSettings.model_validate(BASE.model_dump() | SETTINGS[request.param])


def test_packed_equals_alone(tiny, pixels, settings):
    all_jobs = jobs(tiny, pixels, settings)
    for job, packed in zip(all_jobs, Learner(tiny, Pack(all_jobs), settings).run(), strict=True):
        (alone,) = Learner(tiny, Pack((job,)), settings).run()
        assert (packed.steps, packed.kept_step, packed.sample_passes) == (
            alone.steps, alone.kept_step, alone.sample_passes,
        )  # fmt: skip
        for ours, theirs in zip(packed.concepts, alone.concepts, strict=True):
            assert (ours.vectors - theirs.vectors).abs().max() < 1e-9
            assert (ours.attention - theirs.attention).abs().max() < 1e-9
        for ours, theirs in zip(packed.curve, alone.curve, strict=True):
            assert ours.fixed_noise_loss == pytest.approx(theirs.fixed_noise_loss, abs=1e-9)
            assert (ours.step, ours.mask_area) == (theirs.step, theirs.mask_area)


def test_resumed_equals_uninterrupted_bit_for_bit(tiny, pixels, settings):
    pack = Pack(jobs(tiny, pixels, settings)[1:])
    expected = Learner(tiny, pack, settings).run()
    first = Learner(tiny, pack, settings)
    for _ in range(3):
        first.advance()
    second = Learner(tiny, pack, settings)
    second.resume(first.save())
    for ours, theirs in zip(second.run(), expected, strict=True):
        for a, b in zip(ours.concepts, theirs.concepts, strict=True):
            assert torch.equal(a.vectors, b.vectors)
            assert torch.equal(a.attention, b.attention)
        assert (ours.curve, ours.losses, ours.steps, ours.kept_step) == (
            theirs.curve, theirs.losses, theirs.steps, theirs.kept_step,
        )  # fmt: skip


def test_the_base_is_unchanged_and_the_cost_counted(tiny, pixels, settings, passes):
    before, (job, *_) = tiny.state_digest(), jobs(tiny, pixels, settings)
    (result,) = Learner(tiny, Pack((job,)), settings).run()
    assert result.sample_passes == sum(passes)
    assert tiny.state_digest() == before
    assert not any(m._forward_hooks for m in (*tiny._unet.modules(), *tiny._text.modules()))


@pytest.mark.parametrize("name", RECIPES)
def test_every_named_recipe_learns_on_the_tiny_base(tiny, pixels, name):
    recipe = adjust(RECIPES[name](), steps=2, probe_every=2, probe_timesteps=2)
    sentence = parse(SENTENCES[0], recipe.words)
    masks = {c.slug: mask for c, mask in zip(sentence.concepts, masks_of(sentence, 0).values(), strict=True)}
    job = make_job(tiny, "x", sentence, pixels(1)[0], recipe, masks)
    (result,) = Learner(tiny, Pack((job,)), recipe).run()
    assert all(torch.isfinite(c.vectors).all() for c in result.concepts)
    assert result.steps == 2
    assert any((c.vectors - start).abs().max() > 0 for c, start in zip(
        result.concepts, job.initial.chunk(len(job.concepts)), strict=True)) or result.kept_step == 0  # fmt: skip
