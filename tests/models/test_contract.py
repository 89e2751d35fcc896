"""What every adapter owes the learner, asked of a tiny random base of each kind that is supported."""

from __future__ import annotations

import pytest
import torch

from mcpl.errors import ConfigError
from mcpl.learning.batch import make_job
from mcpl.learning.learner import Learner
from mcpl.learning.settings import AttentionMask, LearningSettings
from mcpl.models import catalogue
from mcpl.models.catalogue import _adapted, _kind, load, word_width
from mcpl.objectives.objective import Contrastive, Denoising
from mcpl.prompts import parse, tokenize
from mcpl.types import Pack

KINDS = ("sd1", "sd2", "sdxl", "ldm")
FACTS = {
    "sd1": ("stable-diffusion-v1", 768, "epsilon", 16, 8),
    "sd2": ("stable-diffusion-v2-768-v", 1024, "v_prediction", 16, 8),
    "sdxl": ("stable-diffusion-xl-v1-base", 768 + 1280, "epsilon", 16, 4),
    "ldm": ("latent-diffusion", 1280, "epsilon", 64, 8),
}
"""architecture, width of a learned row, prediction, pixels, side of the attention maps"""
SENTENCE = parse("a red <star> left of a blue <ring>")
SHORT = LearningSettings(
    steps=2, lr=0.05, batch=2, probe_every=1, probe_timesteps=2, attention_mask=AttentionMask(threshold=0.98),
    terms={"denoising": Denoising(), "contrastive": Contrastive(weight=0.1)},
)  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def base(kind, base_dir):
    """In float64: equalities can be asked to 1e-9."""
    return load(str(base_dir(kind)), precision="float64", device="cpu")


def pictures(base, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((n, 3, 4, 4), generator=generator, dtype=torch.float64) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=base.facts.resolution, mode="bilinear")


def noisy(base, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((n, *base.facts.latent_shape), generator=generator, dtype=torch.float64).to(base.dtype)


def prompt(base):
    return tokenize(SENTENCE, base.vocabulary, templates=("{}",))


def rows(base, n: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn((n, base.facts.width), generator=generator, dtype=torch.float64)


def learned(base, settings=SHORT, jobs=None):
    return Learner(base, Pack(jobs or two_jobs(base)), settings).run()


def two_jobs(base):
    texts = ("a red <star> left of a blue <ring>", "a green <moon>")
    pixels = pictures(base, 2)
    return tuple(make_job(base, f"p{i}", parse(text), pixels[i], SHORT) for i, text in enumerate(texts))


def test_facts(kind, base, base_dir):
    architecture, width, prediction, pixels, side = FACTS[kind]
    facts = base.facts
    assert (facts.architecture, facts.width, facts.prediction_type) == (architecture, width, prediction)
    assert (facts.resolution, facts.latent_shape, facts.attention_size) == (pixels, (4, 8, 8), side)
    assert word_width(str(base_dir(kind))) == width, "the configuration alone says it"
    assert len(base.alphas_cumprod) == 1000 and base.alphas_cumprod[0] > 0.99
    assert base.dtype == torch.float64 and len(facts.digest) == 16


def test_words_are_spelt_as_the_base_spells_them(kind, base):
    v = base.vocabulary
    ids = prompt(base).token_ids[0].tolist()
    assert len(ids) == v.length == (77 if kind == "ldm" else 40) and ids[0] == v.start
    end = ids.index(v.end)
    assert all(token == v.pad for token in ids[end + 1 :])
    assert base.knows("star") and not base.knows("zyzzyva")
    assert base.word_embeddings("star").shape == (1, base.facts.width)


def test_pictures_become_latents_and_come_back(base):
    latents = base.encode_pictures(pictures(base, 2))
    assert latents.shape == (2, *base.facts.latent_shape) and latents.isfinite().all()
    again = base.decode_latents(latents)
    side = base.facts.resolution
    assert again.shape == (2, side, side, 3) and again.dtype == torch.uint8
    mean = base._vae.encode(pictures(base, 2)).latent_dist.mean
    torch.testing.assert_close(latents, mean * base._vae.config.scaling_factor)


def test_a_slot_is_an_input_embedding(base):
    """A known word's own embedding in a slot says exactly what the word says."""
    p = prompt(base)
    star, ring = (base.vocabulary.pieces(word)[0] for word in ("star", "ring"))
    in_slots = torch.cat([base.word_embeddings("star"), base.word_embeddings("ring")])
    other = torch.where(p.placeholder, base.vocabulary.pieces("moon")[0], p.token_ids)  # what lies under a slot is moot
    slotted = base.encode_prompts(other, p.slot_ids, in_slots)
    spelt = torch.where(p.slot_ids == 0, star, torch.where(p.slot_ids == 1, ring, p.token_ids))
    plain = base.encode_prompts(spelt, torch.full_like(spelt, -1), in_slots[:0])
    torch.testing.assert_close(slotted.hidden, plain.hidden, atol=1e-12, rtol=0)
    for name, value in plain.extra.items():
        torch.testing.assert_close(slotted.extra[name], value, atol=1e-12, rtol=0)
    assert not torch.allclose(slotted.hidden, base.encode_prompts(other, p.slot_ids, in_slots.flip(0)).hidden)


def test_gradients_reach_the_learned_rows_and_nothing_else(base):
    p, vectors = prompt(base), rows(base, 3).requires_grad_()
    given = base.encode_prompts(p.token_ids, p.slot_ids, vectors)
    prediction = base.predict(noisy(base, 1), torch.tensor([500]), given)
    assert prediction.shape == (1, *base.facts.latent_shape)
    prediction.square().sum().backward()
    reached = vectors.grad.abs().sum(dim=1)
    assert (reached[:2] > 0).all() and reached[2] == 0, "the third row stands in no sentence"
    for part in vectors.grad.split(base._widths, dim=1):
        assert part[:2].abs().sum() > 0, "every encoder's part is learned"
    assert all(parameter.grad is None for network in base._networks for parameter in network.parameters())


def test_the_text_decides_the_prediction(base):
    p = prompt(base)
    said = [base.predict(noisy(base, 1), torch.tensor([500]), base.encode_prompts(p.token_ids, p.slot_ids, v))
            for v in (rows(base), rows(base).flip(0))]  # fmt: skip
    assert not torch.allclose(*said)


def test_maps_share_each_place_among_the_tokens(base):
    p, length = prompt(base), base.vocabulary.length
    given = base.encode_prompts(p.token_ids, p.slot_ids, rows(base))
    with base.record(torch.arange(length)[None]) as recording:
        base.predict(noisy(base, 1), torch.tensor([300]), given)
    maps, side = recording.maps(), base.facts.attention_size
    assert maps.shape == (1, length, side, side)
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(1, side, side, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_base_is_given_back_as_it_was(base):
    def hooks() -> int:
        return sum(len(module._forward_hooks) for network in base._networks for module in network.modules())

    before, hooked = base.state_digest(), hooks()
    learned(base, SHORT.model_copy(update={"steps": 1}))
    base.decode_latents(base.sample(noisy(base, 1), base.unconditional(), base.unconditional(), 1, 2.0))
    assert base.state_digest() == before and hooks() == hooked


def test_packed_equals_alone(base):
    jobs = two_jobs(base)
    for job, packed in zip(jobs, learned(base, jobs=jobs), strict=True):
        [alone] = learned(base, jobs=(job,))
        for ours, theirs in zip(packed.concepts, alone.concepts, strict=True):
            assert (ours.vectors - theirs.vectors).abs().max() < 1e-9
            assert (ours.attention - theirs.attention).abs().max() < 1e-9
        start = job.initial.unflatten(0, (len(packed.concepts), -1))
        moved = [(c.vectors - s).abs().max() for c, s in zip(packed.concepts, start, strict=True)]
        assert min(moved) > 0.05, "nothing was learned"


def test_saving_memory_changes_nothing(base):
    plain = learned(base)
    base.save_memory()
    try:
        assert base._unet.is_gradient_checkpointing
        saving = learned(base)
    finally:
        base._unet.disable_gradient_checkpointing()
        base._vae.disable_slicing()
    for ours, theirs in zip(saving, plain, strict=True):
        for a, b in zip(ours.concepts, theirs.concepts, strict=True):
            torch.testing.assert_close(a.vectors, b.vectors, atol=1e-12, rtol=0)


def test_the_empty_sentence(kind, base):
    nothing = base.unconditional()
    assert len(nothing.hidden) == 1 and nothing.hidden.shape[1] == base.vocabulary.length
    assert bool((nothing.hidden == 0).all()) == (kind == "sdxl"), "XL was trained with zeros for no text"


def test_sampling_is_decided_by_noise_and_guidance(base):
    p, noise, empty = prompt(base), noisy(base, 2), base.unconditional()
    one = base.encode_prompts(p.token_ids, p.slot_ids, rows(base))
    given = type(one)(one.hidden.expand(2, -1, -1), {k: v.expand(2, -1) for k, v in one.extra.items()})
    made = [base.sample(noise, given, empty, 2, guidance) for guidance in (3.0, 3.0, 0.0)]
    assert made[0].shape == noise.shape and made[0].isfinite().all()
    assert torch.equal(made[0], made[1])
    without = type(empty)(empty.hidden.expand(2, -1, -1), {k: v.expand(2, -1) for k, v in empty.extra.items()})
    torch.testing.assert_close(made[2], base.sample(noise, without, empty, 2, 1.0))


def test_bfloat16_learns_and_draws_without_nan(kind, base_dir):
    base = load(str(base_dir(kind)), precision="bfloat16", device="cpu")
    assert base.dtype == torch.bfloat16
    job = make_job(base, "p", parse("a green <moon>"), pictures(base, 1)[0], SHORT)
    for result in learned(base, SHORT.model_copy(update={"steps": 1}), (job,)):
        assert all(point.fixed_noise_loss < 1e3 for point in result.curve)
        for concept in result.concepts:
            assert concept.vectors.dtype == torch.float32 and concept.vectors.isfinite().all()
            assert concept.attention.isfinite().all()
    latents = base.sample(noisy(base, 1), base.unconditional(), base.unconditional(), 1, 3.0)
    assert latents.isfinite().all()
    assert base.decode_latents(latents).float().std() > 0, "a picture, not one flat colour"


def test_half_precision_keeps_gradients_that_it_cannot_hold(kind, base_dir):
    """As on an accelerator, with a loss that is a mean over as many values as at full size."""
    half, full = (
        _adapted(_kind(base_dir(kind)), base_dir(kind), "x", dtype) for dtype in (torch.float16, torch.float32)
    )
    gradients = []
    for base in (half, full):
        p, vectors = prompt(base), rows(base).float().requires_grad_()
        given = base.encode_prompts(p.token_ids, p.slot_ids, vectors)
        prediction = base.predict(noisy(base, 1), torch.tensor([500]), given)
        assert prediction.dtype == torch.float32
        loss = prediction.square().sum() / (4 * 4 * 64 * 64)
        gradients.append(torch.autograd.grad(loss, vectors)[0])
    assert half.dtype == torch.float16 and gradients[0].isfinite().all()
    assert torch.cosine_similarity(*gradients, dim=1).min() > 0.99
    assert torch.allclose(*(gradient.norm(dim=1) for gradient in gradients), rtol=0.05)
    latents = half.sample(noisy(half, 1), half.unconditional(), half.unconditional(), 1, 3.0)
    assert latents.dtype == torch.float16 and half.decode_latents(latents).float().std() > 0


def test_half_precision_is_refused_on_a_cpu_before_anything_is_read(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ConfigError, match="float16 needs an accelerator: on a CPU use bfloat16"):
        load(str(tmp_path), precision="float16", device="cpu")


def test_a_pipeline_without_an_adapter_is_named(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ConfigError, match="FluxPipeline; known are StableDiffusionPipeline, StableDiffusionXL"):
        load(str(tmp_path), device="cpu")


def test_width_of_a_base_that_is_not_at_hand():
    assert word_width("sd15") == 768 and word_width("sdxl") == 2048 and word_width("scenes-v1") > 0
    with pytest.raises(ConfigError, match="--base someone/else: not at hand"):
        word_width("someone/else")


def test_a_hub_model_is_pinned_where_it_is_named(base_dir, monkeypatch):
    """`owner/name@revision` asks the hub for that revision, and is what a bank's rows call their base."""
    asked = []
    monkeypatch.setattr(catalogue, "_downloaded", lambda entry: asked.append(entry) or base_dir("sd1"))
    model = load("someone/a-base@1a2b3c", device="cpu")
    assert [(entry.source, entry.revision) for entry in asked] == [("someone/a-base", "1a2b3c")]
    assert model.facts.name == "someone/a-base@1a2b3c"
    load("someone/a-base", revision="4d5e6f", device="cpu")
    assert asked[-1].revision == "4d5e6f"
    with pytest.raises(ConfigError, match="owner/name@revision"):
        catalogue.find("base@1a2b3c")
