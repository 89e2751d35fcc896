"""The gates' command: its arithmetic, and one small measurement of the shipped base."""

import math

import torch
from diffusers import StableDiffusionPipeline

from benchmarks.base_gates import attention_iou, gate_scenes
from benchmarks.drawing import draw, interval
from mcpl.scenes.grammar import caption
from mcpl.scenes.judge import WEIGHTS


def test_intervals():
    assert interval([1.0] * 10) == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 10}
    half = interval([0.0, 1.0] * 50)
    assert half["mean"] == 0.5 and 0.37 < half["low"] < 0.45 < 0.55 < half["high"] < 0.63
    assert math.isnan(interval([])["mean"])


def test_the_shipped_base_draws_offline_and_the_same_again():
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS.parent, dtype=torch.float32, local_files_only=True)
    scenes = gate_scenes(2)
    assert [len(scene.objects) for scene in scenes] == [1, 2]
    prompts = [caption(scene) for scene in scenes]
    pictures = draw(pipe, prompts, seed=0, steps=4, guidance=3.0)
    assert pictures.shape == (2, 32, 32, 3) and pictures.std() > 5
    assert (pictures == draw(pipe, prompts, seed=0, steps=4, guidance=3.0)).all()
    values = attention_iou(pipe, scenes)
    assert len(values) == 3 and all(0 <= value <= 1 for value in values)
