"""Which network learns the world fastest on one core? The same minutes for each, then the same questions.

    python -m benchmarks.base_networks [--minutes 6] [--only shipped,adamw] [--prompts 60]

Every try starts from the same text encoder, taught to read once (not counted), and a U-Net that knows nothing; it
trains alone on one thread for so many minutes of processor time with the learning rate falling over the last fifth, and
is asked on scenes that nobody trained on:

    samples_per_s   of processor time
    error           mean squared error of v on fixed noise, 64 scenes, at 9 levels of noise that are the same for every
                    target and schedule (angles 5 to 85 degrees, cosine = share of signal), averaged weights; an epsilon
                    or another schedule is told as the v that it means
    shape ... right judge's verdicts on one-object pictures drawn from prompts (20 steps, guidance 3)

The tries are a table; a new one is a line of it. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.provenance import machine
from mcpl.diffusion import add_noise, target
from mcpl.scenes.grammar import caption
from mcpl.scenes.judge import Judge, matches
from mcpl.scenes.scene import sample_scene
from mcpl.scenes.training.data import batch
from mcpl.scenes.training.latents import decode, encode, tensor_to_pictures
from mcpl.scenes.training.loop import BaseConfig, Trainer
from mcpl.scenes.training.networks import Shape
from mcpl.scenes.training.preview import sample_latents
from mcpl.scenes.world import shapes

UNSEEN = 3_000_000_000  # first sample of the questions; training begins at 0
ANGLES, SCENES = torch.arange(5.0, 90.0, 10.0).deg2rad(), 64
FALL = 0.2  # of the time, during which the learning rate falls to zero

TRIES: dict[str, dict] = {
    "shipped": {},
    "another-seed": {"seed": 1},  # what chance does to these figures
    "narrow": {"shape": Shape(channels=(32, 64, 128))},
    "wide": {"shape": Shape(channels=(96, 128, 160))},
    "two-levels": {"shape": Shape(channels=(64, 128), heads=(4, 4), attend=(True, True))},
    "eight-heads": {"shape": Shape(heads=(8, 8, 8))},
    "adamw": {"optimiser": "adamw"},
    "uniform-time": {"late": 1.0},
    "no-reading": {"reading_steps": 0, "text_pace": 1.0},
    "epsilon": {"prediction": "epsilon"},
    "scaled-linear": {"schedule": "scaled_linear"},  # Stable Diffusion's
    "epsilon-scaled-linear": {"prediction": "epsilon", "schedule": "scaled_linear"},
    "captions-always": {"drop_caption": 0.0},
    "captions-less": {"drop_caption": 0.25},
    "short-average": {"ema": 0.98},
    "long-average": {"ema": 0.999},
}


def trained(config: BaseConfig, minutes: float, reader: dict[str, torch.Tensor] | None) -> tuple[Trainer, float]:
    """The base after so many minutes of processor time, and its samples per second. `reader`: its text encoder's."""
    trainer = Trainer(config.model_copy(update={"reading_steps": 0}))
    if reader:
        trainer.text_encoder.load_state_dict(reader)
    started, budget = time.process_time(), 60 * minutes
    while (spent := time.process_time() - started) < budget:
        left = min(1.0, (budget - spent) / (FALL * budget))
        trainer.pace = lambda warm=min(1.0, (trainer.steps_since_start + 1) / config.warm_up), left=left: warm * left
        trainer.step()
    return trainer, trainer.cursor / spent


def velocity_error(unet, trainer: Trainer, clean: torch.Tensor, told: torch.Tensor) -> float:
    """Mean squared error of v over the levels of noise, whatever the network predicts: v is off by 1 / signal times
    what epsilon is off by."""
    random, errors = torch.Generator().manual_seed(0), []
    for angle in ANGLES:
        at = (trainer.keep.sqrt() - angle.cos()).abs().argmin().expand(len(clean))
        noise = torch.randn(clean.shape, generator=random)
        wanted = target(clean, noise, at, trainer.keep, trainer.config.prediction)
        error = F.mse_loss(unet(add_noise(clean, noise, at, trainer.keep), at, told).sample, wanted)
        errors.append(error / trainer.keep[at[0]] if trainer.config.prediction == "epsilon" else error)
    return torch.stack(errors).mean().item()


@torch.no_grad()
def questions(trainer: Trainer, prompts: int) -> dict[str, float]:
    """What the averaged weights know."""
    text_encoder, unet = trainer.averaged()
    pictures, ids = batch(0, range(UNSEEN, UNSEEN + SCENES), trainer.tokenizer)
    error = velocity_error(unet, trainer, encode(pictures), text_encoder(input_ids=ids).last_hidden_state)
    scenes = [sample_scene([UNSEEN, i], objects=1, pool=shapes("named")) for i in range(prompts)]
    latents = sample_latents(unet, text_encoder, trainer.tokenizer, trainer.scheduler, [caption(s) for s in scenes])
    readings = Judge.load().read(tensor_to_pictures(decode(latents)))
    verdicts = [matches(reading, scene) for reading, scene in zip(readings, scenes, strict=True)]
    traits = {
        name: float(np.mean([getattr(v, name) for v in verdicts])) for name in ("shape", "colour", "count", "right")
    }
    return {"error": error, **traits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(TRIES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    reader, results = Trainer(BaseConfig()).text_encoder.state_dict(), {}
    for name in args.only:
        config = BaseConfig(**TRIES[name])
        trainer, speed = trained(config, args.minutes, reader if config.reading_steps else None)
        size = sum(p.numel() for p in trainer.unet.parameters()) / 1e6
        results[name] = {"parameters_m": size, "samples": trainer.cursor, "samples_per_s": speed}
        results[name] |= questions(trainer, args.prompts)
        print(f"{name:14}", "  ".join(f"{key} {value:.4g}" for key, value in results[name].items()), flush=True)
    print(json.dumps({"tries": results, "minutes": args.minutes, **machine("benchmarks.base_networks")}))


if __name__ == "__main__":
    main()
