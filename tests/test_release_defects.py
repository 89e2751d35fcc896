"""Defects of the official release, never to be repeated: one test each, in the numbering of the method.

Where a defect can be reproduced, the `release` way (mcpl.objectives.release, recipe `release`) is run beside ours, so
that a test shows what it would fail on.
"""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from mcpl.data.pictures import fit
from mcpl.evaluation.sampling import generate_all
from mcpl.learning.batch import draw_rows, make_job, make_shared_job
from mcpl.learning.learner import Learner
from mcpl.learning.settings import AttentionMask, LearningSettings, ReleaseMask
from mcpl.learning.step import probe
from mcpl.objectives.attention import binarise, normalise, union
from mcpl.objectives.contrastive import prompt_contrastive
from mcpl.objectives.denoising import masked_denoising
from mcpl.objectives.objective import Contrastive, Denoising, ReleaseContrastive
from mcpl.objectives.release import release_mask, rolled_contrastive
from mcpl.prompts import parse, plain, tokenize
from mcpl.recipes import RECIPES, load
from mcpl.types import Pack

RIGHT = [name for name in RECIPES if name != "release"]
SHARP = LearningSettings(
    steps=6, lr=0.05, probe_every=3, probe_timesteps=4, attention_mask=AttentionMask(threshold=0.98)
)  # fmt: skip
TEXT = "a red <star> left of a blue <ring> on a grey ground"


def a_job(model, pixels, settings=SHARP, text=TEXT, picture=0, **given):
    return make_job(model, f"job-{picture}", parse(text), pixels(picture + 1)[picture], settings, **given)


def peaks() -> torch.Tensor:
    """Maps [4, 2, 8, 8]: a strong concept in one corner, one ten times weaker in the opposite corner."""
    maps = torch.full((4, 2, 8, 8), 0.001)
    maps[:, 0, :3, :3], maps[:, 1, 5:, 5:] = 0.5, 0.05
    return maps


def test_01_masks_belong_to_their_own_picture(tiny, pixels):
    """Two jobs in one pack: each has the mask that it has alone, whatever its neighbour's picture."""
    both = tuple(a_job(tiny, pixels, picture=i) for i in range(2))
    packed = Learner(tiny, Pack(both), SHARP)
    packed.advance()
    for job, track in zip(both, packed._tracks, strict=True):
        alone = Learner(tiny, Pack((job,)), SHARP)
        alone.advance()
        assert torch.equal(alone._tracks[0].mask, track.mask)
    first, second = (track.mask for track in packed._tracks)
    assert not torch.equal(first, second)


def test_01_masks_of_a_diverse_job_belong_to_their_own_picture(tiny, pixels):
    """A row is masked by the maps of the picture that it shows."""
    sentences = [parse("a red <star> above a <box>"), parse("a blue <ring> below a red <star>")]
    job = make_shared_job(tiny, "set", sentences, pixels(2), SHARP)
    learner = Learner(tiny, Pack((job,)), SHARP)
    learner.advance()
    (track,) = learner._tracks
    drawn = draw_rows(job, torch.Generator().manual_seed(0), SHARP, 1000)
    masks = learner._row_masks([track], [drawn], 3).loss
    for view, mask in zip(drawn.views, masks, strict=True):
        assert torch.equal(mask[0], track.mask[view.picture, list(view.objects)].amax(dim=0))
    assert {view.picture for view in drawn.views} == {0, 1}


def test_02_maps_are_softmaxed_once(tiny, pixels):
    """All tokens' columns sum to 1 as recorded; two further softmaxes make the release's mask 1 everywhere."""
    length = tiny.vocabulary.length
    hidden = torch.randn(1, length, tiny.facts.width, dtype=torch.float64)
    with tiny.record(torch.arange(length)[None]) as recording:
        tiny._unet(torch.randn(1, *tiny.facts.latent_shape, dtype=torch.float64), 500, encoder_hidden_states=hidden)
    assert torch.allclose(recording.maps().sum(dim=1), torch.ones((), dtype=torch.float64))
    assert release_mask(peaks(), 0.3).mean() == 1, "the defect"
    assert 0 < union(binarise(peaks()[0], 0.5)).mean() < 0.5


def test_03_the_threshold_is_the_papers():
    assert load("paper").attention_mask.threshold == 0.5
    assert load("release").attention_mask.threshold == 0.3


def test_04_masks_are_united_not_summed():
    ours = union(binarise(peaks()[0], 0.5))
    theirs = release_mask(peaks(), 0.3, softmaxes=0)
    assert ours[6, 6] == 1 and ours[1, 1] == 1
    assert theirs[1, 1] == 1 and theirs[6, 6] == 0, "the defect: the weaker concept's region vanishes"


@pytest.mark.parametrize("concepts", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("rows", [2, 3, 4, 5, 8])
def test_05_positives_are_found_by_concept_id(concepts, rows):
    """Concepts on orthogonal axes are perfect: the loss is at its least for any batch. The release's is only where
    rows mod n = 0."""
    axes = torch.eye(concepts, dtype=torch.float64).expand(rows, concepts, concepts)
    ids, zero = torch.arange(concepts).expand(rows, concepts), torch.zeros(rows, dtype=torch.long)
    tau, others = torch.tensor(0.3, dtype=torch.float64), rows * (concepts - 1)
    least = ((rows - 1) * (1 / tau).exp() + others).log() - 1 / tau
    assert torch.allclose(prompt_contrastive(axes, ids, zero, 1, 0.3), least)
    theirs = rolled_contrastive(axes, ids, zero, 1, 0.3)
    assert torch.allclose(theirs, least) == (rows % concepts == 0), "the defect, where rows mod n != 0"


def test_06_the_contrastive_term_has_a_gradient_in_the_diverse_variant(tiny, pixels):
    """Two pictures, nothing but PromptCL in the loss: the words move; detached they do not."""
    sentences = [parse("a red <star> above a <box>"), parse("a <box> below a red <star>")]

    def moved(terms) -> float:
        settings = SHARP.model_copy(
            update={"terms": {"denoising": Denoising(weight=0), **terms}, "attention_mask": None}
        )
        job = make_shared_job(tiny, "set", sentences, pixels(2), settings)
        (result,) = Learner(tiny, Pack((job,)), settings).run()
        return float((torch.cat([c.vectors for c in result.concepts]) - job.initial).abs().max())

    assert moved({"contrastive": Contrastive(weight=1.0)}) > 0.01
    assert moved({"release-contrastive": ReleaseContrastive(weight=1.0, detached=True)}) == 0, "the defect"


def test_07_maps_are_averaged_over_time(tiny, pixels):
    """The mask of a look is cut from all of its time steps: it is none of the single steps' masks, and does not depend
    on what a training step drew."""
    job = a_job(tiny, pixels)
    learner = Learner(tiny, Pack((job,)), SHARP)
    learner.advance()
    before = learner._tracks[0].mask.clone()
    learner.advance()
    assert torch.equal(before, learner._tracks[0].mask), "refreshed at looks only"
    maps = []
    for t in range(SHARP.probe_timesteps):
        (rows,) = learner._probe_rows[0]
        one = (rows[t : t + 1],)
        (look,) = probe(tiny, [job], [one], [job.initial], 1)
        maps.append(look.maps[0])
    mean = torch.stack(maps).mean(dim=0)
    assert torch.allclose(normalise(mean), normalise(learner._tracks[0].first_maps), atol=1e-9)
    assert len({tuple(union(binarise(m, 0.98)).flatten().tolist()) for m in maps}) > 1, "single steps disagree"


def test_08_the_loss_is_divided_by_the_masks_area():
    error, zero = torch.ones(1, 1, 4, 4), torch.zeros(1, dtype=torch.long)
    small = torch.zeros(1, 1, 4, 4)
    small[..., 0, 0] = 1
    assert masked_denoising(error, torch.zeros_like(error), small, zero, 1).item() == 1
    assert masked_denoising(error, torch.zeros_like(error), small, zero, 1, area_normalised=False).item() == 1 / 16
    assert load("paper").terms["denoising"].area_normalised and not load("release").terms["denoising"].area_normalised


def test_08_masks_are_hard_and_carry_no_gradient(tiny, pixels):
    """No soft mask that the optimiser could shrink."""
    learner = Learner(tiny, Pack((a_job(tiny, pixels),)), SHARP)
    learner.advance()
    mask = learner._tracks[0].mask
    assert set(mask.unique().tolist()) <= {0.0, 1.0} and not mask.requires_grad


def test_09_adjectives_stay_frozen(tiny, pixels):
    """Only placeholders have slots; an adjective is an ordinary token that joins its noun's group."""
    job = a_job(tiny, pixels)
    (view,) = job.views
    bound = (view.prompt.concept_ids >= 0) & ~view.prompt.placeholder
    assert bound.any() and (view.prompt.slot_ids[bound] == -1).all()
    assert len(job.initial) == 2
    assert [c.slug for c in parse(TEXT, load("release").words).concepts] == ["red", "star", "blue", "ring"], (
        "the defect"
    )


def test_09_every_placeholder_gets_the_initialiser(tiny, pixels):
    every = a_job(tiny, pixels).initial
    assert torch.equal(every[0], every[1])
    first = a_job(tiny, pixels, SHARP.model_copy(update={"initialize": "first"})).initial
    assert torch.equal(first[0], every[0]) and not torch.equal(first[1], every[1]), "the defect"


@pytest.mark.parametrize("name", RIGHT)
def test_10_no_weight_decay(name):
    assert load(name).weight_decay == 0


def test_10_a_row_that_no_gradient_reaches_keeps_its_length(tiny, pixels):
    still = {"terms": {"denoising": Denoising(weight=0.0)}, "attention_mask": None, "lr": 0.05}

    def length(**changes) -> float:
        settings = SHARP.model_copy(update=still | changes)
        job = a_job(tiny, pixels, settings)
        (result,) = Learner(tiny, Pack((job,)), settings).run()
        return float(result.curve[-1].norm / result.curve[0].norm)

    assert length() == 1
    assert length(weight_decay=0.01) == pytest.approx((1 - 0.05 * 0.01) ** 6), "the defect"


def test_11_adjectives_are_bound_by_position():
    one, two = parse("a <bear> on a rolling <board>").concepts
    assert (one.adjectives, two.adjectives) == ((), ("rolling",))


def test_11_template_words_are_never_bound(tiny):
    """ "small" and "dark" in a caption around the sentence match nothing in it."""
    sentence = parse("a small <bear> in a dark <cave>")
    prompt = tokenize(sentence, tiny.vocabulary, templates=("{}", "a small dark photo of {}"))
    members = (prompt.concept_ids >= 0).sum(dim=1)
    assert members[0] == members[1]


def test_12_punctuation_and_capitals_match():
    bear, board = parse("A Brown <Bear>, and a red <board>!").concepts
    assert (bear.adjectives, board.adjectives) == (("brown",), ("red",))


def test_12_a_map_of_zeros_is_not_divided_by_zero():
    assert torch.isfinite(normalise(torch.zeros(2, 8, 8))).all()


def test_13_words_may_be_many_token_pieces_and_have_any_name(tiny, pixels):
    """An initialiser in pieces, and slugs that are names inside other programs."""
    assert len(tiny.vocabulary.pieces("zebra")) > 1
    job = a_job(tiny, pixels, text="a <train:zebra> on <values>")
    assert torch.allclose(job.initial[0], tiny.word_embeddings("zebra").mean(dim=0))
    (result,) = Learner(tiny, Pack((job,)), SHARP.model_copy(update={"steps": 1})).run()
    assert [c.concept.slug for c in result.concepts] == ["train", "values"]


@pytest.mark.parametrize("name", RIGHT)
def test_14_no_recipe_mirrors_pictures_unasked(name):
    assert load(name).flips == "never"


def test_14_left_and_right_are_never_mirrored_where_it_is_asked_for_safely(tiny, pixels):
    safe, always = (SHARP.model_copy(update={"flips": how}) for how in ("safe", "always"))
    assert len(a_job(tiny, pixels, safe).latents) == 1
    assert len(a_job(tiny, pixels, safe, text="a <star> above a <ring>").latents) == 2
    assert len(a_job(tiny, pixels, always).latents) == 2, "the defect"


def test_14_aspect_ratio_is_kept():
    """A circle in a portrait picture stays a circle."""
    picture = Image.new("RGB", (40, 80))
    picture.paste((255, 255, 255), (10, 30, 30, 50))  # a square of 20
    fitted = torch.tensor(list(fit(picture, 32).convert("L").getdata())).view(32, 32) > 128
    height, width = int(fitted.any(dim=1).sum()), int(fitted.any(dim=0).sum())
    assert abs(height - width) <= 1


def test_15_monitoring_pictures_use_the_real_sentence(tiny, pixels, monkeypatch):
    """`evaluate` draws the job's own sentence, and looks read it without a caption around it."""
    from mcpl.evaluation import evaluate as module

    drawn = []
    monkeypatch.setattr(module, "generate_all", lambda model, wishes, *rest: drawn.extend(
        wish.sentence for wish in wishes) or generate_all(model, wishes, *rest))  # fmt: skip
    job = a_job(tiny, pixels)
    (result,) = Learner(tiny, Pack((job,)), SHARP.model_copy(update={"steps": 1})).run()
    module.evaluate(tiny, module.Subject(result, (module.Given(job.sentence),)), samples=1)
    assert job.sentence in drawn and plain(job.sentence) == "a red star left of a blue ring on a grey ground"


def test_release_reproduces_a_mask_that_is_everywhere(tiny, pixels):
    """The README's full recipe: AttnMask is on, and the loss is that of the whole picture."""
    recipe = load("release").model_copy(update={"steps": 2, "probe_every": 1, "probe_timesteps": 2})
    job = make_job(tiny, "x", parse(TEXT, recipe.words), pixels(1)[0], recipe)
    (result,) = Learner(tiny, Pack((job,)), recipe).run()
    assert [point.mask_area for point in result.curve] == [1, 1, 1]
    without = recipe.model_copy(update={"attention_mask": None})
    (unmasked,) = Learner(tiny, Pack((job,)), without).run()
    for ours, theirs in zip(result.concepts, unmasked.concepts, strict=True):
        assert torch.allclose(ours.vectors, theirs.vectors, atol=1e-12)
    one_softmax = recipe.model_copy(
        update={"attention_mask": ReleaseMask(source="release", threshold=0.999, softmaxes=0)}
    )
    (masked,) = Learner(tiny, Pack((job,)), one_softmax).run()
    assert masked.curve[-1].mask_area < 1, "a sharper threshold and no further softmax would have masked"
