"""What a step does and leaves undone, counted rather than timed: waiting, encoding and gradients that need not be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mcpl.learning.batch import draw_rows, make_job, pack_rows
from mcpl.learning.learner import Learner
from mcpl.learning.settings import LearningSettings
from mcpl.learning.step import RowMasks, object_masks, row_mask, step
from mcpl.models.catalogue import load
from mcpl.objectives.objective import Attention, BindSuppress, Contrastive, Denoising
from mcpl.prompts import parse
from mcpl.types import Pack

TEXTS = ("a red <star> left of a blue <ring>", "a green <moon>")
TERMS = {
    "denoising": Denoising(),
    "contrastive": Contrastive(),
    "attention": Attention(),
    "bind-suppress": BindSuppress(),
}
PLAIN = LearningSettings(attention_mask=None, terms={"denoising": Denoising()}, probe_timesteps=5, batch=3)


@pytest.fixture
def encoded(tiny, monkeypatch):
    """Grows by the rows of every call of the text encoder."""
    rows, original = [], tiny.encode_prompts

    def counting(token_ids, *rest):
        rows.append(len(token_ids))
        return original(token_ids, *rest)

    monkeypatch.setattr(tiny, "encode_prompts", counting)
    return rows


def jobs(model, pixels, settings=PLAIN):
    return tuple(
        make_job(model, text, parse(text), picture, settings)
        for text, picture in zip(TEXTS, pixels(len(TEXTS)), strict=True)
    )


class Apart(TorchDispatchMode):
    """Raises where an operator mixes the host's tensors with the device's: a copy, for which the host waits."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor) and t.ndim]
        assert len({t.device for t in tensors}) < 2, f"{function} copies between host and device"
        return result


def test_no_step_makes_the_host_wait_for_the_device(tiny_base_dir, pixels):
    """On the meta device there are no values: whatever reads one on the way (`item`, `tolist`, `nonzero`) raises."""
    settings = LearningSettings(terms=TERMS)
    model = load(str(tiny_base_dir), device="cpu")
    pack = Pack(tuple(replace(job, latents=job.latents.to("meta")) for job in jobs(model, pixels, settings)))
    model.to(torch.device("meta"))
    drawn = [draw_rows(job, torch.Generator().manual_seed(0), settings, 1000) for job in pack.jobs]
    batch = pack_rows(pack, drawn, model)
    learned = torch.cat([job.initial for job in pack.jobs]).to("meta").requires_grad_()
    small = torch.ones(1, 2, model.facts.attention_size, model.facts.attention_size, device="meta")
    views = [view for rows in drawn for view in rows.views]
    with Apart():
        loss = torch.stack([row_mask(torch.ones(1, 2, 8, 8, device="meta"), view) for view in views])
        objects = torch.stack([object_masks(small, view, 2) for view in views])
        output = step(model, batch, learned, RowMasks(loss, objects), TERMS, len(pack.jobs))
        (gradient,) = torch.autograd.grad(output.loss.sum(), learned)
    assert gradient.shape == learned.shape and output.terms["attention"].shape == (2,)


def test_equal_prompts_are_encoded_once(tiny, pixels, encoded, monkeypatch):
    """A look says one bare sentence at every time step; a step without templates says one in every row."""
    bare = PLAIN.model_copy(update={"templates": "none", "steps": 1})
    pack = Pack(jobs(tiny, pixels, bare))
    once = Learner(tiny, pack, bare).run()
    assert encoded == [2, 2, 2, 2, 2]  # two looks of two calls (5 time steps, 3 at once) and a step: two sentences each

    def each_by_itself(rows):
        everyone = torch.arange(sum(len(own.views) for own in rows))
        return everyone, everyone

    monkeypatch.setattr("mcpl.learning.batch._said", each_by_itself)
    often = Learner(tiny, pack, bare).run()
    assert encoded[5:] == [6, 4, 6, 6, 4]
    for ours, theirs in zip(once, often, strict=True):
        for word, other in zip(ours.concepts, theirs.concepts, strict=True):
            assert (word.vectors - other.vectors).abs().max() < 1e-9
        assert ours.losses["denoising"] == pytest.approx(theirs.losses["denoising"], abs=1e-12)


class Backward(TorchDispatchMode):
    """Counts convolutions backwards, and those that compute a gradient of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.of_weights = self.forward = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            self.forward += 1
        if function is torch.ops.aten.convolution_backward.default:
            self.all += 1
            self.of_weights += any(args[-1][1:])
        return function(*args, **(kwargs or {}))


def test_nothing_that_needs_no_gradient_gets_one(tiny, pixels):
    """Neither weights nor what comes before the first word is read: that is run forwards only."""
    learner = Learner(tiny, Pack(jobs(tiny, pixels)), PLAIN)
    learner.advance()
    with Backward() as counted:
        learner.advance()
    assert counted.of_weights == 0
    first = next(n for n, name in enumerate(_convolutions(tiny._unet)) if "attentions" in name)
    assert first >= 3  # the way in and a residual block
    assert counted.all == counted.forward - first - 1  # the first attention's way in reads no word yet


def _convolutions(unet) -> list[str]:
    """Names of the convolutions in the order in which they run."""
    names, handles = [], []
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            handles.append(module.register_forward_hook(lambda *_, name=name: names.append(name)))
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    with torch.no_grad():
        unet(torch.zeros(1, 4, side, side, dtype=unet.dtype), 1, torch.zeros(1, 2, width, dtype=unet.dtype))
    for handle in handles:
        handle.remove()
    return names
