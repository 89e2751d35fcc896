"""Has the base understood "left of"? Does a sentence with the true relation fit better than one with another?

    python -m benchmarks.base_sides [--base DIR | --run RUN] [--scenes 128]

At a noisy time step the base predicts what a picture of the sentence may look like. Of scenes with two objects of
other shapes and colours, the share where the true sentence has the lower error than the mirrored one ("right of" for
"left of") and than the turned one ("above"), and the true one's error. Chance is one half. Generated pictures go wrong
in many ways; this asks one thing, in seconds, while a base is in training. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from mcpl.diffusion import add_noise, target
from mcpl.scenes.grammar import caption
from mcpl.scenes.judge import WEIGHTS
from mcpl.scenes.render import render
from mcpl.scenes.scene import Scene, sample_scene
from mcpl.scenes.training.job import resumed
from mcpl.scenes.training.latents import encode, pictures_to_tensor
from mcpl.scenes.training.networks import build_scheduler
from mcpl.scenes.world import shapes

SEED = 77_000
TIMES = (999, 930, 860)
MIRRORED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
TURNED = {"left of": "above", "right of": "below", "above": "left of", "below": "right of"}


def pairs(n: int) -> list[Scene]:
    """Scenes of two objects that differ in shape and colour."""
    drawn = (sample_scene([SEED, i], objects=2, pool=shapes("named")) for i in count())
    return list(islice((s for s in drawn if s.objects[0].colour != s.objects[1].colour), n))


@torch.no_grad()
def fit(text_encoder, unet, tokenizer, scenes: list[Scene]) -> dict[str, dict[str, float]]:
    """time step -> error of the true sentence, and how often it beats the mirrored and the turned one."""
    keep = build_scheduler().alphas_cumprod
    random = torch.Generator().manual_seed(0)
    clean = encode(pictures_to_tensor(np.stack([render(scene)[0] for scene in scenes])))

    def told(change: dict[str, str]) -> torch.Tensor:
        texts = [caption(replace(s, relation=change.get(s.relation, s.relation))) for s in scenes]
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return text_encoder(input_ids=ids).last_hidden_state

    states = [told(change) for change in ({}, MIRRORED, TURNED)]
    found = {}
    for time in TIMES:
        at = torch.full((len(scenes),), time)
        noise = torch.randn(clean.shape, generator=random)
        noisy, wanted = add_noise(clean, noise, at, keep), target(clean, noise, at, keep, "v_prediction")
        true, mirrored, turned = ((unet(noisy, at, s).sample - wanted).square().mean((1, 2, 3)) for s in states)
        found[str(time)] = {
            "error": true.mean().item(),
            "over_mirrored": (true < mirrored).float().mean().item(),
            "over_turned": (true < turned).float().mean().item(),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=WEIGHTS.parent)
    parser.add_argument("--run", type=Path, help="directory of a run in training: its averaged weights")
    parser.add_argument("--scenes", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.run:
        trainer = resumed(args.run)
        parts = (*trainer.averaged(), trainer.tokenizer)
    else:
        pipe = StableDiffusionPipeline.from_pretrained(args.base, dtype=torch.float32, local_files_only=True)
        parts = (pipe.text_encoder, pipe.unet, pipe.tokenizer)
    print(json.dumps(fit(*parts, pairs(args.scenes))))


if __name__ == "__main__":
    main()
