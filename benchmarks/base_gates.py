"""Is the small base good enough to rest claims on? Generate, judge, and say with 95 % intervals.

    python -m benchmarks.base_gates [--prompts 500] [--base DIR] [--sheet gates.png]

Half of the prompts ask for one object and half for two, named shapes in combinations that were drawn in training; all
traits are told, and noise is fixed by the prompt's number. The last line is one JSON object:

    shape, colour, count, relation   share of pictures that show every asked shape; colour; so many objects; the side
    all_right_1, all_right_2         share with everything right and nothing else, one and two objects apart
    attention_iou                    16x16 cross-attention of each noun against its true mask, on noised renders: mean
                                     over layers, heads and 10 stratified time steps, divided by its maximum, over .5
    judge                            share of fresh renders that the judge reads without a mistake
    vae_psnr                         dB of a render's round trip through the autoencoder
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline

from benchmarks.drawing import GUIDANCE, STEPS, draw, interval, open_base
from mcpl.models.cross_attention import record
from mcpl.scenes.grammar import caption
from mcpl.scenes.judge import WEIGHTS, matches
from mcpl.scenes.render import render
from mcpl.scenes.scene import Scene, sample_scene
from mcpl.scenes.training.autoencoder import psnr, round_trip
from mcpl.scenes.training.latents import pictures_to_tensor
from mcpl.scenes.training.networks import velocity
from mcpl.scenes.training.preview import sheet
from mcpl.scenes.world import SHAPES, shapes

SEED = 20_000  # of the prompts; far from training's
TIMES = 10  # stratified time steps of an attention map


def gate_scenes(count: int) -> list[Scene]:
    """The standing prompts: one and two objects in turn."""
    return [sample_scene([SEED, i], objects=1 + i % 2, pool=shapes("named")) for i in range(count)]


@torch.no_grad()
def attention_iou(pipe: StableDiffusionPipeline, scenes: list[Scene]) -> list[float]:
    """Intersection over union of each told noun's attention with the object's visible mask, one value an object."""
    keep = pipe.scheduler.alphas_cumprod
    side = pipe.unet.config.sample_size
    values: list[float] = []
    for number, scene in enumerate(scenes):
        random = torch.Generator().manual_seed(SEED + number)
        picture, masks = render(scene, 2 * side // 32)
        ids = pipe.tokenizer([caption(scene)], padding="max_length", return_tensors="pt").input_ids
        nouns = pipe.tokenizer.convert_tokens_to_ids([f"{item.shape}</w>" for item in scene.objects])
        positions = torch.tensor([ids[0].tolist().index(token) for token in nouns]).expand(TIMES, -1)
        clean = pipe.vae.encode(pictures_to_tensor(picture[None])).latent_dist.mode() * pipe.vae.config.scaling_factor
        clean = clean.expand(TIMES, -1, -1, -1)
        at = ((torch.arange(TIMES) + torch.rand(TIMES, generator=random)) / TIMES * len(keep)).long()
        noisy, _ = velocity(clean, torch.randn(clean.shape, generator=random), keep[at])
        told = pipe.text_encoder(input_ids=ids).last_hidden_state.expand(TIMES, -1, -1)
        with record(pipe.unet, positions, side) as recording:
            pipe.unet(noisy, at, told)
        maps = recording.maps().mean(0)
        found = maps / maps.amax((1, 2), keepdim=True) >= 0.5
        true = F.avg_pool2d(torch.from_numpy(masks).float()[None], masks.shape[-1] // side)[0] >= 0.5
        values += ((found & true).sum((1, 2)) / (found | true).sum((1, 2))).tolist()
    return values


def measure(base: Path, prompts: int, *, steps: int = STEPS, guidance: float = GUIDANCE, picture: Path | None = None):
    """Every gate of the base in `base`, each with its interval."""
    pipe, judge = open_base(base)
    scenes = gate_scenes(prompts)
    fresh = [sample_scene([SEED + 1, i], objects=1 + i % 2, pool=tuple(SHAPES), held_out=None) for i in range(1000)]
    renders = np.stack([render(scene)[0] for scene in fresh])
    sure = [matches(r, s) for r, s in zip(judge.read(renders), fresh, strict=True)]
    told = pictures_to_tensor(renders[:200])
    drawn = draw(pipe, [caption(scene) for scene in scenes], seed=SEED, steps=steps, guidance=guidance)
    verdicts = [matches(r, s) for r, s in zip(judge.read(drawn), scenes, strict=True)]
    if picture:
        sheet(drawn[:64], picture, columns=8)
    return {
        "shape": interval([v.shape for v in verdicts]),
        "colour": interval([v.colour for v in verdicts]),
        "count": interval([v.count for v in verdicts]),
        "relation": interval([v.relation for v in verdicts if v.relation is not None]),
        "attention_iou": interval(attention_iou(pipe, scenes[: min(prompts, 200)])),
        "judge": interval([v.right for v in sure]),
        "vae_psnr": interval(psnr(told, round_trip(pipe.vae, told)).tolist()),
        "all_right_1": interval([v.right for v in verdicts[::2]]),
        "all_right_2": interval([v.right for v in verdicts[1::2]]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=WEIGHTS.parent)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--sheet", type=Path, help="also save the first 64 pictures here")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started = time.monotonic()
    gates = measure(args.base, args.prompts, steps=args.steps, guidance=args.guidance, picture=args.sheet)
    print(f"{args.base}, {args.prompts} prompts, {args.steps} steps, guidance {args.guidance}, "
          f"{time.monotonic() - started:.0f} s")  # fmt: skip
    for name, value in gates.items():
        print(f"{name:14} {value['mean']:7.3f}  [{value['low']:.3f}, {value['high']:.3f}]  n={value['n']}")
    print(json.dumps(gates))


if __name__ == "__main__":
    main()
