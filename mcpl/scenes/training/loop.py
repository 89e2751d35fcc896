"""The training loop of the small base: a U-Net and its text encoder on analytic latents, resumable at any step.

The learning rate warms up, holds, and falls to zero over a last stretch only when asked (`decay_from`), so that a run
of unknown length can be cut anywhere. Everything random hangs on (seed, sample cursor) and the number of
workers, because noise is seeded by each worker's first sample: stopped and resumed equals uninterrupted as long as the
workers are as many and the optimiser's state is kept.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from mcpl.diffusion import add_noise, target
from mcpl.prompts import TEMPLATES
from mcpl.scenes.grammar import DROP_CAPTION, vocabulary
from mcpl.scenes.training.data import SHARES, batch
from mcpl.scenes.training.latents import encode
from mcpl.scenes.training.muon import Muon
from mcpl.scenes.training.networks import Shape, build_scheduler, build_text_encoder, build_unet
from mcpl.scenes.training.reading import teach_reading
from mcpl.scenes.training.tokenizer import build_tokenizer


class BaseConfig(BaseModel):
    """What decides the base model. Where and how long it trains is said elsewhere (`Placement` of train_base)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: Shape = Shape()
    seed: int = 0
    rows: int = 32  # samples of a step, all workers together
    lr: float = 4e-3  # of matrices under Muon
    lr_rest: float = 1.5e-3  # of everything under AdamW
    text_pace: float = 0.1  # the text encoder can read already: the share of the learning rates it keeps
    warm_up: int = 200  # steps, at the start and after every restart of the optimiser
    ema: float = 0.996  # per step
    objects: tuple[float, ...] = SHARES  # of the scenes, those with one, two, three objects
    late: float = 0.6  # power of the uniform time; below 1 the noisy end, where objects take shape, is met more often
    reading_steps: int = 600  # of the text encoder alone, before the first sample
    clip: float = 1.0  # largest norm of a gradient
    optimiser: Literal["muon", "adamw"] = "muon"
    prediction: Literal["v_prediction", "epsilon"] = "v_prediction"
    schedule: Literal["squaredcos_cap_v2", "scaled_linear", "linear"] = "squaredcos_cap_v2"  # of the noise
    drop_caption: float = DROP_CAPTION  # how often there is none, for guidance
    decay_from: int | None = None  # sample at which the learning rate starts to fall
    decay_samples: int = 20_000  # and for how long


def split_optimisers(
    named: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    lr: float,
    lr_rest: float,
    paces: Mapping[str, float] = MappingProxyType({}),
    muon: bool = True,
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside a network, AdamW for its edges, vectors and embeddings.

    paces  share of the learning rate for parameters whose name begins so; each group's full rate is its `full_lr`
    """
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for name, parameter in named:
        edge = any(word in name for word in ("embedding", "conv_in", "conv_out"))
        pace = next((pace for start, pace in paces.items() if name.startswith(start)), 1.0)
        groups.setdefault((muon and parameter.ndim >= 2 and not edge, pace), []).append(parameter)
    split: dict[bool, list[dict]] = {True: [], False: []}
    for (matrix, pace), parameters in groups.items():
        rate = pace * (lr if matrix else lr_rest)
        split[matrix].append({"params": parameters, "lr": rate, "full_lr": rate})
    adam = torch.optim.AdamW(split[False], betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    return [adam, Muon(split[True], lr=lr)] if split[True] else [adam]


class Trainer:
    """A base model in training: weights, their moving average, optimisers, and the sample cursor."""

    def __init__(self, config: BaseConfig, *, device: str = "cpu", rank: int = 0, world: int = 1, fresh: bool = True):
        self.config, self.device, self.rank, self.world = config, torch.device(device), rank, world
        self.tokenizer = build_tokenizer(vocabulary(TEMPLATES))
        torch.manual_seed(config.seed)
        self.text_encoder = build_text_encoder(config.shape, len(self.tokenizer))
        self.unet = build_unet(config.shape)
        if fresh and config.reading_steps:
            teach_reading(self.text_encoder, self.tokenizer, seed=config.seed, steps=config.reading_steps)
        self.networks = torch.nn.ModuleDict({"text_encoder": self.text_encoder, "unet": self.unet}).to(self.device)
        self.parameters = list(self.networks.parameters())
        if world > 1:
            for parameter in self.parameters:
                dist.broadcast(parameter.data, 0)
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.scheduler = build_scheduler(config.prediction, config.schedule)
        self.keep = self.scheduler.alphas_cumprod.to(self.device)
        self.cursor, self.steps_since_start = 0, 0
        lr, rest = config.lr, config.lr_rest
        slow = {"text_encoder": config.text_pace}
        self.optimisers = split_optimisers(
            self.networks.named_parameters(), lr=lr, lr_rest=rest, paces=slow, muon=config.optimiser == "muon"
        )

    def pace(self) -> float:
        """The share of the full learning rate that the next step takes."""
        config, warm = self.config, min(1.0, (self.steps_since_start + 1) / self.config.warm_up)
        if config.decay_from is None:
            return warm
        return warm * min(1.0, max(0.0, 1 - (self.cursor - config.decay_from) / config.decay_samples))

    def step(self) -> float:
        """One step on the next `rows` samples; returns the loss, averaged over workers."""
        config = self.config
        mine = config.rows // self.world
        first = self.cursor + self.rank * mine
        pictures, ids = batch(
            config.seed, range(first, first + mine), self.tokenizer, config.shape.pixels, config.objects,
            config.drop_caption,
        )  # fmt: skip
        random = torch.Generator().manual_seed(config.seed * 1_000_003 + first)
        clean = encode(pictures)
        noise = torch.randn(clean.shape, generator=random)
        steps = len(self.keep)
        # stratified: each row takes its own slice of the schedule, so that no batch is all noise or all detail
        slices = (torch.arange(mine) * self.world + self.rank + torch.rand(mine, generator=random)) / config.rows
        at = (slices**config.late * steps).long()[torch.randperm(mine, generator=random)]
        clean, noise, at, ids = (each.to(self.device) for each in (clean, noise, at, ids))
        noisy, wanted = add_noise(clean, noise, at, self.keep), target(clean, noise, at, self.keep, config.prediction)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            told = self.text_encoder(input_ids=ids).last_hidden_state
            guess = self.unet(noisy, at, told).sample
        loss = F.mse_loss(guess.float(), wanted)
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        loss.backward()
        loss = self._share_gradients(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.parameters, config.clip)
        pace = self.pace()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["full_lr"] * pace
            optimiser.step()
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - self._ema())
        self.cursor += config.rows
        self.steps_since_start += 1
        return loss.item()

    def _ema(self) -> float:
        """Short at first, so that the average does not drag the random start along."""
        done = self.cursor / self.config.rows
        return min(self.config.ema, (1 + done) / (10 + done))

    def _share_gradients(self, loss: torch.Tensor) -> torch.Tensor:
        """Average gradients and loss over workers in one message."""
        if self.world == 1:
            return loss
        grads = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in grads), loss.view(1)])
        dist.all_reduce(flat)
        flat /= self.world
        sizes = [g.numel() for g in grads]
        for grad, piece in zip(grads, flat[:-1].split(sizes), strict=True):
            grad.copy_(piece.view_as(grad))
        return flat[-1]

    def averaged(self) -> tuple[CLIPTextModel, UNet2DConditionModel]:
        """Copies of the text encoder and the U-Net with the averaged weights."""
        networks = copy.deepcopy(self.networks).eval()
        for parameter, mean in zip(networks.parameters(), self.average, strict=True):
            parameter.data.copy_(mean)
        return networks["text_encoder"], networks["unet"]

    # --- checkpoints -------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write weights, average, optimiser and cursor so that a reader sees the old state or the new, never half."""
        moments = {f"{i}.{k}.{key}": value.contiguous().cpu() for i, k, key, value in self._moments()}
        self._write(folder, {"": self._weights() | self._average(), ".optimiser": moments}, optimiser=True)

    def hand_over(self, folder: Path) -> None:
        """Write fp16 weights and average, a file each, without the optimiser: small enough to keep in a repository."""
        parts = {".weights": self._weights(), ".average": self._average()}
        halves = {part: {name: value.half() for name, value in tensors.items()} for part, tensors in parts.items()}
        self._write(folder, halves, optimiser=False)

    def _write(self, folder: Path, parts: dict[str, dict[str, torch.Tensor]], *, optimiser: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"state-{self.cursor}"
        for part, tensors in parts.items():
            beside = folder / f"{stem}{part}.part"
            save_file(tensors, beside)
            beside.replace(folder / f"{stem}{part}.safetensors")
        record = {"cursor": self.cursor, "steps_since_start": self.steps_since_start, "weights": stem}
        record |= {"config": self.config.model_dump(mode="json"), "optimiser": optimiser}
        beside = folder / "state.json.part"
        beside.write_text(json.dumps(record, indent=1) + "\n")
        beside.replace(folder / "state.json")
        for old in folder.glob("state-*.safetensors"):
            if not old.name.startswith(f"{stem}."):
                old.unlink()

    def _weights(self) -> dict[str, torch.Tensor]:
        return {f"weights.{n}": p.detach().contiguous().cpu() for n, p in self.networks.named_parameters()}

    def _average(self) -> dict[str, torch.Tensor]:
        names = (name for name, _ in self.networks.named_parameters())
        return {f"average.{n}": p.contiguous().cpu() for n, p in zip(names, self.average, strict=True)}

    def _moments(self):
        for i, optimiser in enumerate(self.optimisers):
            for k, parameter in enumerate(p for group in optimiser.param_groups for p in group["params"]):
                for key, value in optimiser.state.get(parameter, {}).items():
                    yield i, k, key, value

    def load(self, folder: Path) -> None:
        """Go on from `folder`. Without the optimiser's state the learning rate warms up again."""
        record = json.loads((folder / "state.json").read_text())
        tensors: dict[str, torch.Tensor] = {}
        for part in sorted(folder.glob(f"{record['weights']}.*safetensors")):
            if ".optimiser" not in part.name:
                tensors |= load_file(part)
        with torch.no_grad():
            for (name, parameter), mean in zip(self.networks.named_parameters(), self.average, strict=True):
                parameter.copy_(tensors[f"weights.{name}"])
                mean.copy_(tensors[f"average.{name}"])
        self.cursor = record["cursor"]
        if record["optimiser"]:
            self.steps_since_start = record["steps_since_start"]
            moments = load_file(folder / f"{record['weights']}.optimiser.safetensors")
            for i, optimiser in enumerate(self.optimisers):
                parameters = [p for group in optimiser.param_groups for p in group["params"]]
                for name, value in moments.items():
                    which, k, key = name.split(".", 2)
                    if int(which) == i:
                        optimiser.state[parameters[int(k)]][key] = value.to(self.device)


def train(
    trainer: Trainer,
    folder: Path,
    *,
    until: int | None = None,
    minutes: float = 1e9,
    save_every: float = 5.0,
    report: Callable[[dict], None] = print,
    show: Callable[[Trainer], None] | None = None,
    show_every: float = 10.0,
) -> None:
    """Step until sample `until`, or for so many minutes, or until the file `stop` appears in `folder`.

    Saves every `save_every` minutes and at the end. All workers stop at the same step: rank 0 decides.
    """
    config, started, saved, shown, told = trainer.config, *(time.monotonic(),) * 4
    first, lost, count = trainer.cursor, 0.0, 0
    if config.decay_from is not None:
        until = min(until or 2**62, config.decay_from + config.decay_samples)
    while True:
        now = time.monotonic()
        ended = (until is not None and trainer.cursor >= until) or now - started > 60 * minutes
        if _agreed(ended or (folder / "stop").exists(), trainer):
            break
        lost, count = lost + trainer.step(), count + 1
        if trainer.rank:
            continue
        if now - told > 30:
            speed = (trainer.cursor - first) / (now - started)
            left = (until - trainer.cursor) / speed / 60 if until else minutes - (now - started) / 60
            report({"cursor": trainer.cursor, "loss": lost / count, "samples_per_s": speed, "minutes_left": left})
            told, lost, count = now, 0.0, 0
        if now - saved > 60 * save_every:
            trainer.save(folder)
            saved = now
        if show and now - shown > 60 * show_every:
            show(trainer)
            shown = now
    if trainer.rank == 0:
        trainer.save(folder)


def _agreed(stop: bool, trainer: Trainer) -> bool:
    """What rank 0 thinks, known to all."""
    if trainer.world == 1:
        return stop
    vote = torch.tensor([float(stop)], device=trainer.device)
    dist.broadcast(vote, 0)
    return bool(vote.item())
