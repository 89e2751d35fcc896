"""MCPL-one, -all, -diverse and what lies between; initialisers; what a row of a step is drawn from."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from mcpl.errors import ExampleError
from mcpl.learning.batch import draw_rows, make_job, make_shared_job, pack_rows
from mcpl.learning.learner import Learner
from mcpl.learning.settings import AttentionMask, EarlyStop, LearningSettings
from mcpl.learning.step import row_mask
from mcpl.objectives.objective import Attention, Contrastive, Denoising
from mcpl.prompts import about, parse, share_concepts
from mcpl.recipes import adjust, load
from mcpl.types import Pack

SETTINGS = LearningSettings(steps=4, lr=0.05, probe_every=2, probe_timesteps=3)
PAIR = ("a red <star> <near:above> a <box>", "a <ring> <under:below> a blue <star>")


def changed(**changes) -> LearningSettings:
    return LearningSettings.model_validate(SETTINGS.model_dump() | changes)


def drawn_views(job, settings, steps=60):
    generator = torch.Generator().manual_seed(0)
    return [view for _ in range(steps) for view in draw_rows(job, generator, settings, 1000).views]


def test_a_diverse_job_shares_words_between_pictures(tiny, pixels):
    """<star> is one slot in both sentences; each row shows a picture and says that picture's own sentence."""
    job = make_shared_job(tiny, "set", [parse(t) for t in PAIR], pixels(2), SETTINGS)
    assert [c.slug for c in job.concepts] == ["star", "near", "box", "ring", "under"]
    assert job.concepts[0].adjectives == ("red", "blue")
    assert [c.is_object for c in job.concepts] == [True, False, True, True, False]
    star = [(view.prompt.slot_ids[0] == 0).nonzero().flatten().tolist() for view in job.views]
    assert star == [[3], [6]]
    batch = pack_rows(Pack((job,)), [draw_rows(job, torch.Generator().manual_seed(0), SETTINGS, 1000)], tiny)
    for row in range(len(batch.latents)):
        shown = next(n for n in range(2) if torch.equal(batch.latents[row], job.latents[n]))
        present = set(batch.slot_ids[row].tolist()) - {-1}
        assert present == ({0, 1, 2} if shown == 0 else {0, 3, 4})


def test_every_word_of_a_diverse_job_is_learned_and_has_a_map(tiny, pixels):
    settings = changed(steps=8, attention_mask=AttentionMask(threshold=0.98))
    job = make_shared_job(tiny, "set", [parse(t) for t in PAIR], pixels(2), settings)
    (result,) = Learner(tiny, Pack((job,)), settings).run()
    for word, start in zip(result.concepts, job.initial.chunk(5), strict=True):
        assert (word.vectors - start).abs().max() > 0.01, word.concept.slug
        assert word.attention.max() == 1
    assert result.sample_passes == 8 * settings.batch + len(result.curve) * settings.probe_timesteps * 2


def test_one_picture_twice_is_two_views_of_one_mask(tiny, pixels):
    """N pictures that are the same with the same sentence look the same."""
    picture = pixels(1)
    job = make_shared_job(tiny, "set", [parse(PAIR[0])] * 2, torch.cat([picture, picture]), SETTINGS)
    assert torch.equal(job.latents[0], job.latents[1]) and len(job.concepts) == 3
    assert [view.objects for view in job.views] == [(0, 2), (0, 2)]


def test_sharing_renames_nothing_in_one_sentence():
    sentence = parse(PAIR[0])
    assert share_concepts([sentence]) == (sentence,)


def test_a_shared_word_starts_from_its_first_initialiser():
    one, two = share_concepts([parse("a <star> here"), parse("a <star:disc> there")])
    assert one.concepts == two.concepts and one.concepts[0].initializer == "disc"


@pytest.mark.parametrize(
    ("words", "learned"),
    [
        ("marked", ["bear", "board"]),
        ("adjectives", ["brown", "bear", "rolling", "board"]),
        ("all:1", ["brown", "bear", "board"]),
        ("all:3", ["brown", "bear", "on", "rolling", "board"]),
        ("all:9", ["brown", "bear", "on", "rolling", "board", "times", "square"]),
    ],
)
def test_any_number_of_learnable_words_between_one_and_all(words, learned):
    sentence = parse("a brown <bear> on a rolling <board>, times square", words)
    assert [c.slug for c in sentence.concepts] == learned
    assert [c.slug for c in sentence.concepts if c.is_object] == ["bear", "board"]


def test_a_marked_adjective_or_relation_is_learned_but_masks_nothing():
    sentence = parse("a <brown> <bear> <on> a <board> <rel:beside> <ice-cream>")
    assert {c.slug: c.is_object for c in sentence.concepts} == {
        "brown": False,
        "bear": True,
        "on": False,
        "board": True,
        "rel": False,
        "ice-cream": True,
    }


def test_many_words_of_many_vectors_leave_out_the_templates_that_do_not_fit(tiny, pixels):
    """Five words of three vectors fill most of the text encoder: they are learned, in as many contexts as fit."""
    text = "a red <star>, a blue <box>, a red <ring>, a blue <moon> and a red <disc>" + " left" * 7
    settings = changed(vectors_per_word=3)
    crowded, roomy = (make_job(tiny, "five", parse(t), pixels(1)[0], settings) for t in (text, "a red <star>"))
    contexts = [len(job.looks[0].prompt.token_ids) for job in (crowded, roomy)]
    assert 1 < contexts[0] < contexts[1]
    together = make_shared_job(tiny, "two", [parse(text), parse("a <star>")], pixels(2), settings)
    assert [len(view.prompt.token_ids) for view in together.views] == [contexts[0]] * 2
    (result,) = Learner(tiny, Pack((together,)), settings).run()
    assert len(result.concepts) == 5


def test_initialisers(tiny, pixels):
    def first(text="a striped red <star> by a <box>", **changes):
        return make_job(tiny, "x", parse(text), pixels(1)[0], changed(**changes)).initial[0]

    embedded = tiny.word_embeddings
    mean = (embedded("red") + embedded("blue")).mean(dim=0) / 2
    assert torch.allclose(first(initializer="red, blue"), mean)
    assert torch.allclose(first(initializer="adjective"), (embedded("striped") + embedded("red"))[0] / 2)
    assert torch.equal(first(initializer="noun"), embedded("star")[0])
    pieces = embedded("zebra")
    assert len(pieces) > 1 and torch.allclose(first("a <star:zebra>"), pieces.mean(dim=0))
    rows = make_job(tiny, "x", parse("a <star:zebra>"), pixels(1)[0], changed(vectors_per_word=len(pieces))).initial
    assert torch.equal(rows, pieces), "a word of n pieces fills n vectors piece by piece"


def test_fixed_norm_holds_every_row_at_the_length_of_its_words(tiny, pixels):
    settings = changed(initializer="red,blue", initializer_length="words", fixed_norm=True, steps=6)
    job = make_job(tiny, "x", parse(PAIR[0]), pixels(1)[0], settings)
    (result,) = Learner(tiny, Pack((job,)), settings).run()
    red, blue = (tiny.word_embeddings(word).norm() for word in ("red", "blue"))
    lengths = torch.cat([c.vectors for c in result.concepts]).norm(dim=-1)
    expected = torch.stack([(red + blue) / 2, tiny.word_embeddings("above").norm(), (red + blue) / 2])
    assert torch.allclose(lengths, expected, atol=1e-9)
    assert (result.concepts[0].vectors - job.initial[0]).abs().max() > 0.05


def test_union_sampling_draws_every_number_of_objects_equally_often(tiny, pixels):
    """3 objects: 1, 2 or all 3 a third of the time each; the mask unites the named objects only."""
    text = "a red <star>, a <ring> and a blue <box>"
    settings = changed(union_sampling=3)
    job = make_job(tiny, "x", parse(text), pixels(1)[0], settings)
    counts = Counter(len(view.objects) for view in drawn_views(job, settings, 300))
    assert all(0.28 < counts[k] / 1200 < 0.39 for k in (1, 2, 3))
    said = {view.objects: view.sentence.text for view in job.views}
    assert said[(0, 2)] == "a red <star> and a blue <box>" and said[(0, 1, 2)] == text
    masks = torch.eye(3).view(1, 3, 1, 3)  # concept c covers column c
    for view in job.views:
        assert row_mask(masks, view).flatten().nonzero().flatten().tolist() == list(view.objects)
    two = make_job(tiny, "x", parse("a <star> and a <ring>"), pixels(1)[0], settings)
    assert len(two.views) == 1, "from three objects on"


def test_about_says_only_what_it_is_asked():
    sentence = parse("a brown <bear> on a rolling <board>")
    assert about(sentence, [1]).text == "a rolling <board>"
    assert about(sentence, [1], adjectives=False).text == "a <board>"
    assert about(sentence, [0, 1]).text == "a brown <bear> and a rolling <board>"


def test_a_mirrored_row_is_masked_by_the_mirrored_mask(tiny, pixels):
    settings = changed(flips="always")
    job = make_job(tiny, "x", parse("a <star> above a <ring>"), pixels(1)[0], settings)
    straight, mirrored = job.views
    masks = torch.zeros(1, 2, 2, 2)
    masks[0, 0, 0, 0] = 1
    assert row_mask(masks, straight)[0].tolist() == [[1, 0], [0, 0]]
    assert row_mask(masks, mirrored)[0].tolist() == [[0, 1], [0, 0]]
    assert torch.equal(job.latents[1], tiny.encode_pictures(pixels(1).flip(-1))[0])


HALF = {"star": torch.cat([torch.ones(16, 8), torch.zeros(16, 8)], dim=1)}
HALF["ring"] = 1 - HALF["star"]
TWO = "a <star> left of a <ring>"


def test_given_masks_are_the_loss_masks(tiny, pixels):
    settings = changed(attention_mask={"source": "given"})
    learner = Learner(tiny, Pack((make_job(tiny, "x", parse(TWO), pixels(1)[0], settings, HALF),)), settings)
    learner.advance()
    star, ring = learner._tracks[0].mask[0]
    assert star[:, :4].eq(1).all() and star[:, 4:].eq(0).all() and torch.equal(ring, 1 - star)


@pytest.mark.parametrize("name", ["break-a-scene", "masked-inversion"])
def test_baselines_with_given_masks_say_which_one_is_missing(tiny, pixels, name):
    with pytest.raises(ExampleError, match="none of <ring>"):
        make_job(tiny, "x", parse(TWO), pixels(1)[0], load(name), {"star": HALF["star"]})


@pytest.mark.parametrize(("sentences", "ground"), [("objects-on-black", -1.0), ("masked-objects", 0.0)])
def test_masked_inversion_learns_each_word_on_its_own_object(tiny, pixels, sentences, ground):
    """Each row shows one object alone and says its word alone; looks see the whole picture and sentence."""
    assert load("masked-inversion").sentences == "objects-on-black"
    recipe = adjust(load("masked-inversion"), sentences=sentences)
    picture = pixels(1)[0]
    job = make_job(tiny, "x", parse("a red <star> left of a <ring>"), picture, recipe, HALF)
    assert [(v.sentence.text, v.objects) for v in job.views] == [("a <star>", (0,)), ("a <ring>", (1,))]
    for view, slug in zip(job.views, ("star", "ring"), strict=True):
        cut = picture.where(HALF[slug].bool(), ground)
        assert torch.equal(job.latents[view.picture], tiny.encode_pictures(cut[None])[0])
    assert torch.equal(job.latents[job.looks[0].picture], tiny.encode_pictures(picture[None])[0])


def test_one_word_inversion_says_one_word_about_the_whole_picture(tiny, pixels):
    job = make_job(tiny, "x", parse("a red <star> left of a <ring>"), pixels(1)[0], load("one-word"))
    assert [v.sentence.text for v in job.views] == ["a <star>", "a <ring>"]
    assert len(job.latents) == 1 and {v.picture for v in job.views} == {0}


def test_the_attention_loss_moves_attention_onto_the_masks(tiny, pixels):
    """Given masks in a left and a right half: with the term a word's map overlaps its mask better than without."""

    def error(weight: float) -> float:
        terms = {"denoising": Denoising(weight=0.0), "attention": Attention(weight=weight)}
        settings = changed(steps=40, lr=0.05, probe_every=40, attention_mask=AttentionMask(source="given"), terms=terms)
        job = make_job(tiny, "x", parse(TWO), pixels(1)[0], settings, HALF)
        (result,) = Learner(tiny, Pack((job,)), settings).run()
        small = [torch.nn.functional.adaptive_avg_pool2d(HALF[s][None], 8)[0] for s in ("star", "ring")]
        return sum(float((c.attention - m).square().mean()) for c, m in zip(result.concepts, small, strict=True))

    assert error(1.0) < error(0.0) - 0.01


def test_early_stop_keeps_the_best_look_and_saves_the_rest(tiny, pixels):
    """A learning rate that only does harm: the job stops after `patience` looks with the rows that were best."""
    settings = changed(steps=50, lr=3.0, probe_every=1, attention_mask=None, stop=EarlyStop(patience=2))
    job = make_job(tiny, "x", parse(TWO), pixels(1)[0], settings)
    (result,) = Learner(tiny, Pack((job,)), settings).run()
    losses = {point.step: point.fixed_noise_loss for point in result.curve}
    assert result.steps < 50 and result.steps == max(losses)
    assert result.kept_step == min(losses, key=losses.get) and result.kept.fixed_noise_loss == min(losses.values())
    again = Learner(tiny, Pack((job,)), changed(steps=result.kept_step, lr=3.0, probe_every=1, attention_mask=None))
    for ours, theirs in zip(result.concepts, again.run()[0].concepts, strict=True):
        assert torch.equal(ours.vectors, theirs.vectors)
        assert torch.equal(ours.attention, theirs.attention)


def test_a_stopped_job_leaves_its_neighbours_alone(tiny, pixels):
    """One job of the pack stops early, the other goes on to the end of its steps."""
    stop = EarlyStop(patience=1, min_gain=0)
    settings = changed(steps=10, lr=0.05, probe_every=1, attention_mask=None, stop=stop)
    pair = tuple(make_job(tiny, f"p{i}", parse(TWO), pixels(4)[i], settings) for i in range(4))
    packed = Learner(tiny, Pack(pair), settings).run()
    assert len({r.steps for r in packed}) > 1, "all stopped together: the test shows nothing"
    for job, result in zip(pair, packed, strict=True):
        (alone,) = Learner(tiny, Pack((job,)), settings).run()
        assert (alone.steps, alone.kept_step) == (result.steps, result.kept_step)


def test_terms_follow_their_schedules():
    term = Contrastive(weight=2.0, start=3, ramp=3)
    assert [term.weight_at(s) for s in range(8)] == [0, 0, 0, 0.5, 1.0, 1.5, 2.0, 2.0]


def test_a_term_that_has_not_started_moves_nothing(tiny, pixels):
    terms = {"denoising": {"weight": 0.0}, "contrastive": {"weight": 1.0, "start": 2}}
    settings = changed(terms=terms, attention_mask=None, steps=2)
    job = make_job(tiny, "x", parse(TWO), pixels(1)[0], settings)
    (before,) = Learner(tiny, Pack((job,)), settings).run()
    assert torch.equal(torch.cat([c.vectors for c in before.concepts]), job.initial)
    (after,) = Learner(tiny, Pack((job,)), settings.model_copy(update={"steps": 3})).run()
    assert not torch.equal(torch.cat([c.vectors for c in after.concepts]), job.initial)


def test_bind_adj_has_a_weight_and_a_schedule_of_its_own(tiny, pixels):
    """With nothing else in the loss the noun moves towards its adjective; a word without one stays; before its start
    nothing moves."""

    def learned(**term):
        terms = {"denoising": {"weight": 0.0}, "bind-adjectives": {"weight": 1.0, **term}}
        settings = changed(steps=4, lr=0.02, attention_mask=None, terms=terms)
        job = make_job(tiny, "x", parse("a red <star> by a <ring>"), pixels(1)[0], settings)
        (result,) = Learner(tiny, Pack((job,)), settings).run()
        return [c.vectors - start for c, start in zip(result.concepts, job.initial.chunk(2), strict=True)], result

    moved, result = learned()
    assert moved[0].abs().max() > 0.01
    values = result.losses["bind-adjectives"]
    assert values[-1] < values[0]
    assert all(not step.any() for step in learned(start=9)[0])
