"""The full-size architectures are the published ones, and what a step needs is counted right."""

from __future__ import annotations

import pytest
import torch

from benchmarks.memory import counted, full_size
from mcpl.orchestration.memory import Alive

PUBLISHED = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "texts": [123_060_480]},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "texts": [340_387_840]},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "texts": [123_060_480, 694_659_840]},
}
"""parameters"""


@pytest.mark.slow
@pytest.mark.parametrize("base", PUBLISHED)
def test_full_size_is_the_published_size(base):
    model = full_size(base, "float32", "meta")
    sizes = [sum(p.numel() for p in network.parameters()) for network in model._networks]
    assert sizes == [PUBLISHED[base]["unet"], PUBLISHED[base]["vae"], *PUBLISHED[base]["texts"]]
    assert model.facts.resolution == {"sd15": 512, "sd21": 768, "sdxl": 1024}[base]


def test_alive_counts_what_a_backward_pass_keeps():
    """Ten sines of a megabyte: each keeps its input, the first of which was there before; gradients need two more."""
    x = torch.zeros(250_000, device="meta", requires_grad=True)
    with Alive() as alive:
        y = x
        for _ in range(10):
            y = y.sin()
        assert alive.now == 10_000_000
        torch.autograd.grad(y.sum(), x)
        assert alive.peak == pytest.approx(12_000_000, rel=1e-3)
        before = alive.now
        with torch.no_grad():
            for _ in range(10):
                y = y.sin()
        assert alive.now == before and alive.peak == pytest.approx(12_000_000, rel=1e-3)


@pytest.mark.slow
def test_packs_need_more_and_saving_needs_less():
    def peak(pack, saving):
        return counted("sd15", "bfloat16", pack, 1, saving)["step_gb"]

    one, two, saved = peak(1, False), peak(2, False), peak(1, True)
    assert 1.8 * one < two < 2.2 * one and saved < 0.6 * one
