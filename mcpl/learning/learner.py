"""The loop: a pack of jobs in, learned words out. No files, no Ray, no MLflow; one caller is as good as another."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from mcpl.errors import BankMismatch
from mcpl.learning.batch import draw_rows, pack_rows, probe_rows
from mcpl.learning.settings import LearningSettings
from mcpl.learning.step import Look, attention_mask, probe, step
from mcpl.models.base import BaseModel
from mcpl.objectives.attention import normalise
from mcpl.types import CurvePoint, LearnedConcept, LearnedConcepts, Pack


@dataclass
class _Track:
    """What one job has lived through; grows with the steps."""

    generator: torch.Generator
    first_maps: Tensor | None = None
    last_maps: Tensor | None = None
    mask: Tensor | None = None
    curve: list[CurvePoint] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)


class Learner:
    """Learns a pack of jobs step by step; can be saved and resumed between any two steps.

        learner = Learner(model, pack, settings)
        learner.run()
        learner.results()          # one LearnedConcepts per job, in the pack's order

    Each job has its own rows, generator, Adam moments, clipping and mask, so a job learns the same alone, packed, or
    resumed. The model is borrowed: nothing of it is changed.
    """

    def __init__(self, model: BaseModel, pack: Pack, settings: LearningSettings) -> None:
        self.model, self.pack, self.settings = model, pack, settings
        self.step_number = 0
        self._rows = [
            job.initial.to(model.device, _at_least_float32(model), copy=True).requires_grad_() for job in pack.jobs
        ]
        self._adam = torch.optim.Adam(self._rows, lr=settings.lr)
        self._tracks = [_Track(torch.Generator().manual_seed(job.seed)) for job in pack.jobs]
        self._probe_rows = [probe_rows(job, settings, len(model.alphas_cumprod)) for job in pack.jobs]

    @property
    def done(self) -> bool:
        return self.step_number >= self.settings.steps

    def run(self, on_step: Callable[[int], None] | None = None) -> list[LearnedConcepts]:
        """All remaining steps; `on_step(step_number)` after each."""
        while not self.done:
            self.advance()
            if on_step:
                on_step(self.step_number)
        return self.results()

    def advance(self) -> None:
        """One optimisation step, with the look before it where one is due."""
        settings, jobs = self.settings, self.pack.jobs
        if self.step_number % settings.probe_every == 0 and not self._looked:
            self._look()
        drawn = [
            draw_rows(job, track.generator, settings, len(self.model.alphas_cumprod))
            for job, track in zip(jobs, self._tracks, strict=True)
        ]
        batch = pack_rows(self.pack, drawn, self.model)
        mask = None
        if settings.attention_mask:
            mask = torch.stack([track.mask for track in self._tracks])[batch.job_ids]
        output = step(self.model, batch, torch.cat(self._rows), mask, settings.terms, len(jobs))
        gradients = torch.autograd.grad(output.loss.sum(), self._rows)
        for row, gradient in zip(self._rows, gradients, strict=True):
            row.grad = self._clipped(gradient)
        for group in self._adam.param_groups:
            group["lr"] = settings.lr * min(1.0, (self.step_number + 1) / (settings.lr_warmup + 1))
        self._adam.step()
        self.step_number += 1
        for name, values in output.terms.items():
            for track, value in zip(self._tracks, values.tolist(), strict=True):
                track.losses.setdefault(name, []).append(value)

    def results(self) -> list[LearnedConcepts]:
        """What every job has learned, with a last look at its maps and fixed-noise loss. Call it when `done`: in
        between, that look would refresh the masks ahead of their time."""
        if not self._looked:
            self._look()
        looks = len(self._tracks[0].curve)
        passes = self.step_number * self.settings.batch + looks * self.settings.probe_timesteps
        return [
            LearnedConcepts(
                job_id=job.id,
                concepts=tuple(
                    LearnedConcept(concept, vectors.cpu(), normalise(last).cpu(), normalise(first).cpu())
                    for concept, vectors, last, first in zip(
                        job.sentence.concepts,
                        row.detach().chunk(len(job.sentence.concepts)),
                        track.last_maps.float(),
                        track.first_maps.float(),
                        strict=True,
                    )
                ),
                curve=tuple(track.curve),
                losses={name: tuple(values) for name, values in track.losses.items()},
                steps=self.step_number,
                sample_passes=passes,
            )
            for job, row, track in zip(self.pack.jobs, self._rows, self._tracks, strict=True)
        ]

    @property
    def _looked(self) -> bool:
        curve = self._tracks[0].curve
        return bool(curve) and curve[-1].step == self.step_number

    def _look(self) -> None:
        learned = torch.cat(self._rows).detach()
        looks = probe(self.model, self.pack, self._probe_rows, learned, self.settings.batch)
        for job, row, track, look in zip(self.pack.jobs, self._rows, self._tracks, looks, strict=True):
            track.last_maps = look.maps
            if track.first_maps is None:
                track.first_maps = look.maps
            if self.settings.attention_mask:
                track.mask = attention_mask(look, job, self.settings.attention_mask.threshold)
            track.curve.append(self._point(look, row, track))

    def _point(self, look: Look, row: Tensor, track: _Track) -> CurvePoint:
        return CurvePoint(
            step=self.step_number,
            fixed_noise_loss=look.fixed_noise_loss,
            mask_area=1.0 if track.mask is None else float(track.mask.mean()),
            norm=float(row.detach().norm(dim=-1).mean()),
            prompt_similarity=look.prompt_similarity,
        )

    def _clipped(self, gradient: Tensor) -> Tensor:
        if self.settings.clip_norm is None:
            return gradient
        return gradient * (self.settings.clip_norm / gradient.norm().clamp_min(1e-12)).clamp_max(1.0)

    def save(self) -> bytes:
        """Everything that a later `resume` needs, as safetensors (no pickle)."""
        tensors: dict[str, Tensor] = {}
        for j, (row, track) in enumerate(zip(self._rows, self._tracks, strict=True)):
            tensors[f"{j}.rows"] = row.detach()
            tensors[f"{j}.generator"] = track.generator.get_state()
            for name in ("first_maps", "last_maps", "mask"):
                if (value := getattr(track, name)) is not None:
                    tensors[f"{j}.{name}"] = value
            for name, value in self._adam.state.get(row, {}).items():
                tensors[f"{j}.adam.{name}"] = value
        story = {
            "step": self.step_number,
            "jobs": [job.id for job in self.pack.jobs],
            "settings": self.settings.model_dump(mode="json"),
            "curves": [[asdict(point) for point in track.curve] for track in self._tracks],
            "losses": [track.losses for track in self._tracks],
        }
        tensors = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        return save_safetensors(tensors, {"mcpl.learner": json.dumps(story)})

    def resume(self, saved: bytes) -> None:
        """Go on from `save()`. Raises BankMismatch where it belongs to other jobs or settings."""
        story = json.loads(_metadata(saved)["mcpl.learner"])
        if story["jobs"] != [job.id for job in self.pack.jobs] or story["settings"] != self.settings.model_dump(
            mode="json"
        ):
            raise BankMismatch("this learner state belongs to other pictures or another recipe: start without it")
        tensors = load_safetensors(saved)
        self.step_number = story["step"]
        for j, (row, track) in enumerate(zip(self._rows, self._tracks, strict=True)):
            with torch.no_grad():
                row.copy_(tensors[f"{j}.rows"])
            track.generator.set_state(tensors[f"{j}.generator"])
            for name in ("first_maps", "last_maps", "mask"):
                value = tensors.get(f"{j}.{name}")
                setattr(track, name, None if value is None else value.to(self.model.device))
            prefix = f"{j}.adam."
            state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if state:
                self._adam.state[row] = {
                    name: value if name == "step" else value.to(row) for name, value in state.items()
                }
            track.curve = [CurvePoint(**point) for point in story["curves"][j]]
            track.losses = story["losses"][j]


def _at_least_float32(model: BaseModel) -> torch.dtype:
    return torch.promote_types(model.dtype, torch.float32)


def _metadata(saved: bytes) -> dict[str, str]:
    length = int.from_bytes(saved[:8], "little")
    return json.loads(saved[8 : 8 + length])["__metadata__"]
