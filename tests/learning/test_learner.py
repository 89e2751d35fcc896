"""What a user would notice of the learner: packed equals alone, resumed equals uninterrupted, the base unchanged."""

from __future__ import annotations

import pytest
import torch

from mcpl.errors import BankMismatch, ExampleError
from mcpl.learning.batch import make_job
from mcpl.learning.learner import Learner
from mcpl.learning.settings import AttentionMask, LearningSettings
from mcpl.objectives.objective import Contrastive, Denoising
from mcpl.prompts import parse
from mcpl.types import Pack

SENTENCES = (
    "a red <star> left of a blue <ring> on a grey ground",
    "a green striped <cross>, a <disc> and a yellow <square>",
    "<moon>",
    "a purple <heart> above a thing",
)
STRONG = LearningSettings(
    steps=10,
    lr=0.05,
    probe_every=4,
    probe_timesteps=5,
    vectors_per_word=1,
    terms={"denoising": Denoising(), "contrastive": Contrastive(weight=0.1)},
)


def jobs(model, pixels, settings=STRONG, sentences=SENTENCES):
    pictures = pixels(len(sentences))
    return tuple(
        make_job(model, f"picture-{i}", parse(text), pictures[i], settings) for i, text in enumerate(sentences)
    )


def vectors(results):
    return {r.job_id: torch.cat([c.vectors for c in r.concepts]) for r in results}


@pytest.mark.parametrize("vectors_per_word", [1, 3])
def test_packed_equals_alone(tiny, pixels, vectors_per_word):
    settings = STRONG.model_copy(
        update={
            "vectors_per_word": vectors_per_word,
            "clip_norm": 0.5,
            "attention_mask": AttentionMask(threshold=0.98),  # a random base's maps are flat
        }
    )
    all_jobs = jobs(tiny, pixels, settings)
    packed = Learner(tiny, Pack(all_jobs), settings).run()
    for result in packed:
        (alone,) = Learner(tiny, Pack(tuple(j for j in all_jobs if j.id == result.job_id)), settings).run()
        for ours, theirs in zip(result.concepts, alone.concepts, strict=True):
            assert (ours.vectors - theirs.vectors).abs().max() < 1e-9
            assert (ours.attention - theirs.attention).abs().max() < 1e-9
        for ours, theirs in zip(result.curve, alone.curve, strict=True):
            assert ours.fixed_noise_loss == pytest.approx(theirs.fixed_noise_loss, abs=1e-9)
            assert ours.mask_area == theirs.mask_area
    assert any(0 < point.mask_area < 0.9 for result in packed for point in result.curve), "no mask was at work"
    start = {j.id: j.initial for j in all_jobs}
    assert all((v - start[i]).abs().max() > 0.1 for i, v in vectors(packed).items()), "nothing was learned"


def test_order_in_the_pack_changes_nothing(tiny, pixels):
    all_jobs = jobs(tiny, pixels)
    forward = vectors(Learner(tiny, Pack(all_jobs), STRONG).run())
    backward = vectors(Learner(tiny, Pack(all_jobs[::-1]), STRONG).run())
    assert all((forward[i] - backward[i]).abs().max() < 1e-9 for i in forward)


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_resumed_equals_uninterrupted_bit_for_bit(tiny, pixels, stop):
    pack = Pack(jobs(tiny, pixels)[:2])
    whole = Learner(tiny, pack, STRONG)
    expected = whole.run()
    first = Learner(tiny, pack, STRONG)
    for _ in range(stop):
        first.advance()
    second = Learner(tiny, pack, STRONG)
    second.resume(first.save())
    resumed = second.run()
    for ours, theirs in zip(resumed, expected, strict=True):
        for a, b in zip(ours.concepts, theirs.concepts, strict=True):
            assert torch.equal(a.vectors, b.vectors)
            assert torch.equal(a.attention, b.attention)
        assert ours.curve == theirs.curve
        assert ours.losses == theirs.losses


def test_a_learner_goes_back_to_a_state_of_its_own(tiny, pixels):
    """With the masks that it had then, not those of the look since."""
    settings = STRONG.model_copy(update={"attention_mask": AttentionMask(threshold=0.98)})
    pack = Pack(jobs(tiny, pixels, settings)[:2])
    expected, learner = vectors(Learner(tiny, pack, settings).run()), Learner(tiny, pack, settings)
    for _ in range(3):
        learner.advance()
    saved = learner.save()
    for _ in range(4):
        learner.advance()
    learner.resume(saved)
    again = vectors(learner.run())
    assert all(torch.equal(again[i], expected[i]) for i in expected)


def test_a_state_of_another_pack_is_refused(tiny, pixels):
    one, two, *_ = jobs(tiny, pixels)
    saved = Learner(tiny, Pack((one,)), STRONG).save()
    with pytest.raises(BankMismatch):
        Learner(tiny, Pack((two,)), STRONG).resume(saved)


def test_the_base_is_unchanged(tiny, pixels):
    before = tiny.state_digest()
    hooks = sum(len(m._forward_hooks) for m in (*tiny._unet.modules(), *tiny._text.modules()))
    Learner(tiny, Pack(jobs(tiny, pixels)), STRONG).run()
    assert tiny.state_digest() == before
    assert sum(len(m._forward_hooks) for m in (*tiny._unet.modules(), *tiny._text.modules())) == hooks
    assert all(p.grad is None for p in (*tiny._unet.parameters(), *tiny._text.parameters()))


def test_ordinary_words_stay_frozen_and_no_decay(tiny, pixels):
    """A word that no gradient reaches keeps its length: AdamW's decay would shrink it (defect 10)."""
    settings = STRONG.model_copy(update={"terms": {"denoising": Denoising(weight=0.0)}, "steps": 20})
    (job, *_) = jobs(tiny, pixels, settings)
    (result,) = Learner(tiny, Pack((job,)), settings).run()
    assert torch.equal(torch.cat([c.vectors for c in result.concepts]), job.initial)


def test_zero_steps_give_the_initialiser(tiny, pixels):
    settings = STRONG.model_copy(update={"steps": 0})
    (job, *_) = jobs(tiny, pixels, settings)
    (result,) = Learner(tiny, Pack((job,)), settings).run()
    assert torch.equal(torch.cat([c.vectors for c in result.concepts]), job.initial)
    assert [point.step for point in result.curve] == [0]
    assert result.sample_passes == settings.probe_timesteps


def test_cost_is_counted_in_sample_passes(tiny, pixels, passes):
    (job, *_) = jobs(tiny, pixels)
    (result,) = Learner(tiny, Pack((job,)), STRONG).run()
    assert result.sample_passes == sum(passes)


def test_learning_lowers_the_loss_on_noise_it_never_saw(tiny, pixels):
    settings = STRONG.model_copy(
        update={"steps": 60, "attention_mask": None, "probe_every": 20, "terms": {"denoising": Denoising()}}
    )
    (job, *_) = jobs(tiny, pixels, settings)
    (result,) = Learner(tiny, Pack((job,)), settings).run()
    assert result.curve[-1].fixed_noise_loss < result.curve[0].fixed_noise_loss


def test_masks_come_from_the_jobs_own_picture(tiny, pixels):
    """Defect 1: each job's mask equals the one that it gets alone, and masks of different pictures differ."""
    sharp = STRONG.model_copy(update={"attention_mask": AttentionMask(threshold=0.98)})
    all_jobs = jobs(tiny, pixels)
    packed = Learner(tiny, Pack(all_jobs), sharp)
    packed.advance()
    masks = [track.mask for track in packed._tracks]
    for job, mask in zip(all_jobs, masks, strict=True):
        alone = Learner(tiny, Pack((job,)), sharp)
        alone.advance()
        assert torch.equal(alone._tracks[0].mask, mask)
    assert not torch.equal(masks[0], masks[1])


def test_a_sentence_longer_than_the_encoder_is_named(tiny, pixels):
    with pytest.raises(ExampleError, match="tokens"):
        make_job(tiny, "x", parse("a <star> " + "and a red disc " * 12), pixels(1)[0], STRONG)


def test_threshold_changes_the_mask(tiny, pixels):
    (job, *_) = jobs(tiny, pixels)
    areas = []
    for threshold in (0.05, 0.95):
        settings = STRONG.model_copy(update={"attention_mask": AttentionMask(threshold=threshold), "steps": 1})
        (result,) = Learner(tiny, Pack((job,)), settings).run()
        areas.append(result.curve[0].mask_area)
    assert areas[0] > areas[1] > 0


def test_a_sentence_of_relation_words_alone_is_learned_with_their_own_masks(tiny, pixels):
    """MCPL-all on "up and down": no word names an object, and nothing may crash a run of a million rows."""
    job = make_job(tiny, "x", parse("up and down", "all"), pixels(1)[0], STRONG)
    (result,) = Learner(tiny, Pack((job,)), STRONG).run()
    assert [c.concept.slug for c in result.concepts] == ["up", "and", "down"]


def test_results_twice_are_the_same(tiny, pixels):
    (job, *_) = jobs(tiny, pixels)
    learner = Learner(tiny, Pack((job,)), STRONG)
    first = learner.run()
    assert learner.results()[0].curve == first[0].curve


def test_the_learning_rate_rises_and_falls_in_lines():
    settings = LearningSettings(steps=10, lr=1.0, lr_warmup=1, lr_decay=0.5)
    rates = [settings.lr_at(step) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert {LearningSettings(steps=10).lr_at(step) for step in range(10)} == {1e-2}
