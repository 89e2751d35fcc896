"""Drawing and editing on a tiny base of every kind that is supported: what is promised exactly is asked exactly."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from mcpl.diffusion import ddim_inverse, ddim_step
from mcpl.errors import BankMismatch, ConfigError
from mcpl.generation.change import refined, replaced, weighted
from mcpl.generation.edit import Editing, drawn, edit, inverted
from mcpl.generation.generate import Drawing, generate, sampling_path, watched_positions
from mcpl.generation.saving import save_edited, save_generated, told_in
from mcpl.generation.words import LearnedWord
from mcpl.models.catalogue import load
from mcpl.models.schedulers import SCHEDULERS
from mcpl.objectives.attention import neglect

TEXT = "a red <bear> left of a blue <board>"
KINDS = ("sd1", "sd2", "sdxl", "ldm")
SHORT = Drawing(steps=2)


@pytest.fixture(scope="module", params=KINDS)
def base(request, base_dir):
    return load(str(base_dir(request.param)), precision="float64", device="cpu")


def words(base, counts={"bear": 2, "board": 1, "cat": 3}):  # noqa: B006
    draw = torch.Generator().manual_seed(1)
    return {
        slug: LearnedWord(slug, torch.randn(n, base.facts.width, generator=draw), "here", base_digest=base.facts.digest)
        for slug, n in counts.items()
    }


def photo(base) -> torch.Tensor:
    coarse = torch.rand((1, 3, 4, 4), generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=base.facts.resolution, mode="bilinear")


def test_a_step_backwards_undoes_a_step():
    draw = torch.Generator().manual_seed(0)
    x, said = (torch.randn(1, 4, 2, 2, dtype=torch.float64, generator=draw) for _ in range(2))
    for kind, shares in (("epsilon", (0.3, 0.7)), ("v_prediction", (0.0, 0.4)), ("v_prediction", (0.4, 1.0))):
        here, there = (torch.tensor(share, dtype=torch.float64) for share in shares)
        again = ddim_inverse(ddim_step(x, said, here, there, kind), said, here, there, kind)
        torch.testing.assert_close(again, x, atol=1e-12, rtol=0)


def test_a_step_by_hand():
    """x = .6 x0 + .8 noise with x0 = 1, noise = 2, moved to .8 x0 + .6 noise."""
    x, noise, here, there = torch.tensor([2.2]), torch.tensor([2.0]), torch.tensor(0.36), torch.tensor(0.64)
    assert ddim_step(x, noise, here, there, "epsilon").item() == pytest.approx(2.0)
    v = torch.tensor([0.6 * 2.0 - 0.8 * 1.0])
    assert ddim_step(x, v, here, there, "v_prediction").item() == pytest.approx(2.0)
    assert ddim_step(x, torch.tensor([1.0]), here, there, "sample").item() == pytest.approx(2.0)


def test_neglect_is_that_of_the_word_that_is_seen_least():
    """A peak of .5 in the middle keeps w0 ** 2 of itself, w0 = 1 / (1 + 2 exp(-2))."""
    maps = torch.zeros(1, 2, 5, 5)
    maps[0, 0, 2, 2], maps[0, 1, 2, 2] = 1.0, 0.5
    centre = 1 / (1 + 2 * np.exp(-2))
    assert neglect(maps).item() == pytest.approx(1 - 0.5 * centre**2, abs=1e-6)


def test_rewriting_to_the_same_changes_nothing_and_is_undone(base):
    noisy = torch.randn(1, *base.facts.latent_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    seen, before = [], {id(m.processor) for m in base._unet.modules() if hasattr(m, "processor")}

    def same(shares, cross):
        seen.append((cross, shares.sum(dim=-1)))
        return shares

    with base.rewrite_attention(same):
        rewritten = base.predict(noisy, torch.tensor([500]), base.unconditional())
    plain = base.predict(noisy, torch.tensor([500]), base.unconditional())
    torch.testing.assert_close(rewritten, plain, atol=1e-10, rtol=0)
    assert {cross for cross, _ in seen} == {True, False}
    assert all(torch.allclose(total, torch.ones_like(total)) for _, total in seen)
    assert {id(m.processor) for m in base._unet.modules() if hasattr(m, "processor")} == before


def test_a_picture_follows_from_its_seed_alone(base):
    ancestral = SHORT.model_copy(update={"scheduler": "euler-ancestral", "at_once": 2})
    for drawing in (SHORT, ancestral):
        three = generate(base, TEXT, words(base), (3, 4, 5), drawing)
        alone = generate(base, TEXT, words(base), (5,), drawing)
        assert three.pictures.shape == (3, base.facts.resolution, base.facts.resolution, 3)
        assert (three.pictures[2].int() - alone.pictures[0].int()).abs().max() <= 1
        assert not torch.equal(three.pictures[0], three.pictures[1])
    assert [word.slug for word in three.words] == ["bear", "board"]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_draws(tiny, name):
    made = generate(tiny, "a red star", seeds=(0,), drawing=Drawing(steps=4, scheduler=name))
    assert made.pictures.float().std() > 0


def test_a_scheduler_is_the_stock_pipelines(base_dir):
    """An independent loop: diffusers' own, with the same noise."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

    base = load(str(base_dir("sd1")), device="cpu")
    pipeline = StableDiffusionPipeline.from_pretrained(base_dir("sd1"), safety_checker=None, local_files_only=True)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn((1, *base.facts.latent_shape), generator=torch.Generator().manual_seed(7))
    theirs = pipeline(
        "a red star", negative_prompt="a blue ring", latents=noise, num_inference_steps=4, guidance_scale=5.0,
        output_type="np",
    ).images  # fmt: skip
    drawing = Drawing(steps=4, guidance=5.0, scheduler="euler", negative="a blue ring")
    ours = generate(base, "a red star", seeds=(7,), drawing=drawing).pictures.numpy()
    assert np.abs(ours - (theirs * 255).round()).max() <= 1


def test_mistakes_are_said(tiny):
    with pytest.raises(ConfigError, match="scheduler 'magic' is none of ddim, ddpm"):
        generate(tiny, "a star", drawing=Drawing(scheduler="magic"))
    with pytest.raises(ConfigError, match="no vectors are given for <bear>"):
        generate(tiny, "a <bear>")
    with pytest.raises(ConfigError, match="nothing to attend to"):
        generate(tiny, "a star", drawing=Drawing(attend=0.1))
    stranger = {"bear": LearnedWord("bear", torch.zeros(1, 16), "there", base="other", base_digest="f" * 16)}
    with pytest.raises(BankMismatch, match="belongs to base other f+, not to"):
        generate(tiny, "a <bear>", stranger)


def test_attention_guidance_makes_the_least_seen_word_seen(base):
    """One guided move, and the most neglected word's peak has grown; without it nothing moves."""
    from mcpl.evaluation.sampling import condition
    from mcpl.generation import generate as module
    from mcpl.prompts import said

    own = words(base)
    vectors = {slug: word.vectors for slug, word in own.items()}
    given = condition(base, said(TEXT), vectors)
    watched = watched_positions(base, said(TEXT), vectors)
    scheduler = base.scheduler("ddim", 4)
    t, (latents, _) = scheduler.timesteps[0], next(sampling_path(base, given, base.unconditional(), (0,), SHORT))

    def least(x) -> float:
        flat = torch.tensor([[0, *(p for each in watched for p in each)]])
        with base.record(flat) as seen, torch.no_grad():
            base.predict(x, t.expand(1), given)
        start, *columns = seen.maps()[0]
        taken = iter(columns)
        shares = torch.stack([sum(next(taken) for _ in each) / (1 - start) for each in watched])
        return 1 - neglect(shares[None]).item()

    moved = module._attend(base, scheduler, latents, t, given, watched, 0.02)
    assert least(moved) > least(latents)
    assert moved.sub(latents).square().mean().sqrt() / latents.square().mean().sqrt() == pytest.approx(0.02, rel=1e-6)
    assert [len(each) for each in watched] == [2, 1]


def test_an_edit_that_changes_nothing_gives_the_picture_back(base):
    """With the whole machinery at work and no mask to hide behind: the changed row walks the original's path."""
    editing = Editing(steps=3, local=False)
    original = drawn(base, TEXT, words(base), (1, 2), editing)
    made = generate(base, TEXT, words(base), (1, 2), Drawing(steps=3))
    same = edit(base, original, refined(TEXT, TEXT), words(base), editing)
    assert (same.pictures.int() - made.pictures.int()).abs().max() <= 1
    assert (same.original.int() - made.pictures.int()).abs().max() <= 1


def test_a_real_picture_is_kept_outside_the_mask_exactly(base):
    editing = Editing(steps=3, threshold=0.999, margin=0)  # maps of random weights are nearly flat
    original = inverted(base, TEXT, words(base), photo(base), editing)
    torch.testing.assert_close(original.latents[-1], base.encode_pictures(photo(base)))
    change = replaced(TEXT, {"<bear>": "<cat>"})
    latents = []
    decode, base.decode_latents = base.decode_latents, lambda x: latents.append(x) or decode(x)
    try:
        made = edit(base, original, change, words(base), editing)
    finally:
        del base.decode_latents
    before, after = latents
    outside = (made.mask == 0)[:, None].expand_as(before)
    assert torch.equal(before[outside], after[outside])
    assert 0 < made.mask.mean() < 1 and not torch.equal(before[~outside], after[~outside])
    assert made.prompt == "a red <cat> left of a blue <board>"
    assert [word.slug for word in made.words] == ["bear", "board", "cat"]


def test_the_inverted_path_leads_back(tiny, monkeypatch):
    """Corrected often enough, the path is the one that sampling takes; a gentle base makes sure that there is one."""
    monkeypatch.setattr(tiny, "predict", lambda noisy, t, given: 0.1 * noisy + 0.05 * given.hidden.mean(dim=(1, 2))[:, None, None, None])  # fmt: skip  # noqa: E501
    monkeypatch.setattr("mcpl.generation.edit._Look", Blind)
    original = inverted(tiny, TEXT, words(tiny), photo(tiny), Editing(steps=10, corrections=12))
    editing = Editing(steps=10, guidance=1.0, local=False)
    latents = []
    monkeypatch.setattr(tiny, "decode_latents", lambda x: latents.append(x) or torch.zeros(1))
    edit(tiny, original, refined(TEXT, TEXT), words(tiny), editing)
    torch.testing.assert_close(*latents, atol=1e-6, rtol=0)
    assert (original.latents[0] - original.latents[-1]).abs().max() > 0.1


class Blind:
    """Sees nothing, where no network runs."""

    def __init__(self, model, *_):
        self.side = model.facts.attention_size

    watching = staticmethod(contextlib.nullcontext)

    def take(self) -> None: ...

    def maps(self) -> torch.Tensor:
        return torch.ones(1, 8, self.side, self.side)


def test_weights_and_replacements_reach_the_picture(tiny):
    editing = Editing(steps=2, local=False)
    own = words(tiny)
    original = drawn(tiny, TEXT, own, (1,), editing)
    same = refined(TEXT, TEXT)
    for change in (weighted(same, {"<bear>": 3.0}), replaced(TEXT, {"red": "green"}), refined(TEXT, "a <bear>")):
        made = edit(tiny, original, change, own, editing)
        assert not torch.equal(made.pictures, made.original), change.after.text


def test_files_tell_how_they_were_made_and_where_nothing_lies(tiny, tmp_path):
    hostile = LearnedWord("bear", torch.zeros(1, 16), "/home/ann/secret", "../../etc/passwd", "b", tiny.facts.digest)
    made = generate(tiny, "a red <bear>", {"bear": hostile}, (3, 4), SHORT)
    files = save_generated(made, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["grid.png", "picture-3.png", "picture-4.png"]
    told = told_in(files[0])
    assert (told["prompt"], told["seed"], told["base_digest"]) == ("a red <bear>", 3, tiny.facts.digest)
    assert told["words"][0]["word"] == "<bear>" and "/home/ann" not in json.dumps(told)
    assert np.array_equal(np.asarray(Image.open(files[0])), made.pictures[0].numpy())
    original = drawn(tiny, "a red <bear>", {"bear": hostile}, (3,), Editing(steps=3))
    change = replaced("a red <bear>", {"red": "green"})
    files = save_edited(edit(tiny, original, change, {"bear": hostile}, Editing(steps=3)), tmp_path / "edited")
    assert [p.name for p in files] == ["original.png", "edited.png", "mask.png", "sheet.png"]
    assert told_in(files[1])["original_prompt"] == "a red <bear>"
