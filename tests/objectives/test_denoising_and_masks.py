"""Masked denoising and attention masks, by hand; each listed defect of the release has its test here."""

from __future__ import annotations

import pytest
import torch

from mcpl.diffusion import add_noise, bucket_centres, stratified_timesteps, target
from mcpl.objectives.attention import binarise, fit_to, iou, normalise, union
from mcpl.objectives.denoising import masked_denoising


def test_unmasked_is_the_mean_squared_error_of_each_job():
    torch.manual_seed(0)
    prediction, wanted = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    job_ids = torch.tensor([0, 0, 1, 1])
    ours = masked_denoising(prediction, wanted, None, job_ids, 2)
    expected = [torch.nn.functional.mse_loss(prediction[s], wanted[s]) for s in (slice(0, 2), slice(2, 4))]
    assert torch.allclose(ours, torch.stack(expected))


def test_area_normalised_by_hand():
    """One row, one channel, 2x2; errors 1, 2, 3, 4; the mask keeps the first two: (1 + 4) / 2, raw (1 + 4) / 4."""
    prediction = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    mask = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    zero = torch.zeros(1, dtype=torch.long)
    assert masked_denoising(prediction, torch.zeros_like(prediction), mask, zero, 1).item() == 2.5
    assert masked_denoising(prediction, torch.zeros_like(prediction), mask, zero, 1, False).item() == 1.25


def test_a_smaller_object_is_not_a_smaller_step():
    """Defect 8: equal errors give equal losses whatever the mask's area."""
    prediction, job_ids = torch.ones(2, 1, 4, 4), torch.tensor([0, 1])
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, :, :1, :1], mask[1, :, :3, :3] = 1, 1
    small, large = masked_denoising(prediction, torch.zeros_like(prediction), mask, job_ids, 2)
    assert small == large == 1


def test_an_empty_mask_gives_zero_not_nan():
    one = torch.ones(1, 1, 2, 2, requires_grad=True)
    loss = masked_denoising(one, torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.long), 1)
    loss.sum().backward()
    assert loss.item() == 0 and torch.isfinite(one.grad).all()


def test_each_map_is_binarised_by_its_own_maximum_then_united():
    """Defect 4: a concept whose attention is ten times weaker keeps its region."""
    strong = torch.tensor([[1.0, 0.4], [0.0, 0.0]])
    weak = torch.tensor([[0.0, 0.0], [0.02, 0.1]])
    maps = torch.stack([strong, weak])
    assert union(binarise(maps, 0.5)).tolist() == [[1, 0], [0, 1]]
    summed_then_thresholded = binarise(maps.sum(dim=0), 0.5)
    assert summed_then_thresholded.tolist() == [[1, 0], [0, 0]], "the release's way loses the weak concept"


def test_a_second_softmax_would_mask_nothing():
    """Defect 2: after another softmax over 256 queries all values are alike, and the mask is 1 everywhere."""
    maps = torch.rand(1, 16, 16) ** 4
    again = maps.flatten(1).softmax(dim=-1).view(1, 16, 16)
    assert binarise(again, 0.3).mean() > 0.999 > binarise(maps, 0.3).mean()


def test_a_map_of_zeros_stays_zero():
    """Defect 12: no 0/0."""
    assert torch.equal(normalise(torch.zeros(1, 2, 2)), torch.zeros(1, 2, 2))
    assert torch.equal(binarise(torch.zeros(1, 2, 2), 0.5), torch.zeros(1, 2, 2))


def test_masks_grow_to_the_latents_size_and_stay_binary():
    mask = torch.zeros(1, 2, 2)
    mask[0, 0, 1] = 1
    grown = fit_to(mask, (4, 4))[0, 0]
    assert grown[:2, 2:].eq(1).all() and grown.sum() == 4


def test_iou_by_hand():
    a = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert iou(a, b).item() == pytest.approx(1 / 3)


def test_schedule_matches_diffusers():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 8, 8)
    timesteps = torch.tensor([0, 500, 999])
    abar = scheduler.alphas_cumprod
    assert torch.allclose(add_noise(latents, noise, timesteps, abar), scheduler.add_noise(latents, noise, timesteps))
    assert torch.allclose(
        target(latents, noise, timesteps, abar, "v_prediction"), scheduler.get_velocity(latents, noise, timesteps)
    )
    assert target(latents, noise, timesteps, abar, "epsilon") is noise


def test_stratified_timesteps_cover_every_bucket():
    uniform = torch.rand(50, 4, dtype=torch.float64)
    drawn = stratified_timesteps(uniform, 1000)
    assert ((drawn // 250) == torch.arange(4)).all()
    assert bucket_centres(10, 1000).tolist() == [50, 150, 250, 350, 450, 550, 650, 750, 850, 950]
