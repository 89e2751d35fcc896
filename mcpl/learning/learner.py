"""The loop: a pack of jobs in, learned words out. No files, no Ray, no MLflow; one caller is as good as another."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from mcpl.errors import BankMismatch
from mcpl.learning.batch import Rows, draw_rows, pack_rows, probe_rows, sent
from mcpl.learning.settings import LearningSettings, ReleaseMask
from mcpl.learning.step import Look, RowMasks, cut_masks, object_masks, probe, row_mask, step, to_latents
from mcpl.models.base import BaseModel
from mcpl.objectives.attention import covered, normalise
from mcpl.prompts import named
from mcpl.types import CurvePoint, Job, LearnedConcept, LearnedConcepts, Pack, StepOutput, View


@dataclass
class _Track:
    """What one job has lived through; grows with the steps."""

    generator: torch.Generator
    first_maps: Tensor | None = None
    """[N, P, m, m] at the first look"""
    last_maps: Tensor | None = None
    """[N, P, m, m] at the newest look"""
    mask_maps: Tensor | None = None
    """[N, P, m, m] running mean over looks, from which masks are cut"""
    mask: Tensor | None = None
    """[N, P, h, w] each concept's 0/1 mask in each picture"""
    small_mask: Tensor | None = None
    """[N, P, m, m] the same at the maps' size"""
    best_rows: Tensor | None = None
    """[slots, D] at the look with the lowest fixed-noise loss, where jobs stop early"""
    best_maps: Tensor | None = None
    """[N, P, m, m] at that look"""
    area: float = 1.0
    """share of the latents in the newest mask"""
    steps: int = 0
    best_step: int | None = None
    best_loss: float = math.inf
    misses: int = 0
    """looks without improvement"""
    stopped: bool = False
    curve: list[CurvePoint] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)


_TENSORS = ("first_maps", "last_maps", "mask_maps", "mask", "small_mask", "best_rows", "best_maps")
_NUMBERS = ("area", "steps", "best_step", "best_loss", "misses", "stopped")


class Learner:
    """Learns a pack of jobs step by step; can be saved and resumed between any two steps.

        learner = Learner(model, pack, settings)
        learner.run()
        learner.results()          # one LearnedConcepts per job, in the pack's order

    Each job has its own rows, generator, Adam moments, clipping, mask and end, so a job learns the same alone, packed,
    or resumed. The model is borrowed: nothing of it is changed.
    """

    def __init__(self, model: BaseModel, pack: Pack, settings: LearningSettings) -> None:
        self.model, self.pack, self.settings = model, pack, settings
        self.step_number = 0
        self._rows = [
            job.initial.to(model.device, _at_least_float32(model), copy=True).requires_grad_() for job in pack.jobs
        ]
        self._lengths = [row.detach().norm(dim=-1, keepdim=True) for row in self._rows]
        if settings.weight_decay:
            self._adam = torch.optim.AdamW(self._rows, settings.lr, weight_decay=settings.weight_decay, fused=True)
        else:
            self._adam = torch.optim.Adam(self._rows, settings.lr, fused=True)
        self._tracks = [_Track(torch.Generator().manual_seed(job.seed)) for job in pack.jobs]
        self._probe_rows = [probe_rows(job, settings, len(model.alphas_cumprod)) for job in pack.jobs]
        self._last_look = -1
        self._masks: dict[tuple, Tensor] = {}
        """masks of views since the last look"""
        self._sent: dict[str, tuple[tuple, Tensor]] = {}
        """masks of the newest step's rows, on the device: which rows, and theirs"""
        self._unread: list[tuple[list[_Track], StepOutput]] = []
        """what steps have reported since the last look, still on the device"""

    @property
    def done(self) -> bool:
        return self.step_number >= self.settings.steps or not self._active

    @property
    def _active(self) -> list[int]:
        """Jobs that have not stopped by themselves."""
        return [j for j, track in enumerate(self._tracks) if not track.stopped]

    def run(
        self,
        on_step: Callable[[int], None] | None = None,
        on_look: Callable[[list[LearnedConcepts]], None] | None = None,
    ) -> list[LearnedConcepts]:
        """All remaining steps; `on_step(step_number)` after each, `on_look(so_far())` after each that looked."""
        while not self.done:
            before = self._last_look
            self.advance()
            if on_look and self._last_look != before:
                on_look(self.so_far())
            if on_step:
                on_step(self.step_number)
        return self.results()

    def advance(self) -> None:
        """One optimisation step, with the look before it where one is due; no step where that look stops every job."""
        settings = self.settings
        if self.step_number % settings.probe_every == 0 and self._last_look != self.step_number:
            self._look()
        active = self._active
        if not active:
            return
        jobs, tracks = [self.pack.jobs[j] for j in active], [self._tracks[j] for j in active]
        own = [self._rows[j] for j in active]
        drawn = [
            draw_rows(job, track.generator, settings, len(self.model.alphas_cumprod))
            for job, track in zip(jobs, tracks, strict=True)
        ]
        batch = pack_rows(Pack(tuple(jobs)), drawn, self.model)
        masks = self._row_masks(tracks, drawn, batch.objects.shape[1])
        release = settings.attention_mask if isinstance(settings.attention_mask, ReleaseMask) else None
        output = step(self.model, batch, torch.cat(own), masks, settings.terms, len(jobs), self.step_number, release)
        gradients = torch.autograd.grad(output.loss.sum(), own)
        for row in self._rows:
            row.grad = None  # Adam leaves out the rows of jobs that have stopped
        for row, gradient in zip(own, gradients, strict=True):
            row.grad = self._clipped(gradient)
        for group in self._adam.param_groups:
            group["lr"] = settings.lr_at(self.step_number)
        self._adam.step()
        if settings.fixed_norm:
            _project(own, [self._lengths[j] for j in active])
        self.step_number += 1
        for track in tracks:
            track.steps += 1
        self._unread.append((tracks, replace(output, loss=output.loss.detach())))

    def _read(self) -> None:
        """Bring home what the steps have reported: the host waits for the device here and at looks, in no step."""
        for tracks, output in self._unread:
            for name, values in output.terms.items():
                for track, value in zip(tracks, values.tolist(), strict=True):
                    track.losses.setdefault(name, []).append(value)
            if output.mask_area is not None:
                for track, area in zip(tracks, output.mask_area.tolist(), strict=True):
                    track.area = area
        self._unread.clear()

    def _row_masks(self, tracks: list[_Track], drawn: list[Rows], concepts: int) -> RowMasks:
        """The masks of a step's rows, each from its own picture."""
        settings = self.settings.looked_mask
        if settings is None:
            return RowMasks(None, None)
        pairs = [(track, view) for track, rows in zip(tracks, drawn, strict=True) for view in rows.views]
        loss = objects = None
        if settings.on_loss and self.step_number >= settings.start:
            loss = self._for_rows(pairs, "loss", lambda track, view: row_mask(track.mask, view))
            if settings.outside:
                loss = loss.clamp_min(settings.outside)
        if any(term.reads_maps for term in self.settings.terms.values()):
            objects = self._for_rows(
                pairs, "objects", lambda track, view: object_masks(track.small_mask, view, concepts)
            )
        return RowMasks(loss, objects)

    def _for_rows(self, pairs: list[tuple[_Track, View]], of: str, make: Callable[[_Track, View], Tensor]) -> Tensor:
        """One mask for each row, made once for all rows of a view, and sent again only where rows show other views.
        [B, ...]"""
        rows = tuple((of, id(track), id(view)) for track, view in pairs)
        if of not in self._sent or self._sent[of][0] != rows:
            for key, (track, view) in zip(rows, pairs, strict=True):
                if key not in self._masks:
                    self._masks[key] = make(track, view)
            self._sent[of] = rows, sent(torch.stack([self._masks[key] for key in rows]), self.model.device)
        return self._sent[of][1]

    def _forget_masks(self) -> None:
        self._masks.clear()
        self._sent.clear()

    def results(self) -> list[LearnedConcepts]:
        """What every job has learned, with a last look at its maps and fixed-noise loss. Call it when `done`: in
        between, that look would refresh the masks ahead of their time."""
        if self._last_look != self.step_number and self._active:
            self._look()
        return self.so_far()

    def so_far(self) -> list[LearnedConcepts]:
        """The rows as they are, with what the last look saw: nothing is computed for it."""
        self._read()
        words = [
            _words_by_picture(
                job,
                row.detach() if track.best_rows is None else track.best_rows,
                track.last_maps if track.best_maps is None else track.best_maps,
                track.first_maps,
            )
            for job, row, track in zip(self.pack.jobs, self._rows, self._tracks, strict=True)
        ]
        return [
            LearnedConcepts(
                job_id=job.id,
                concepts=tuple(next(look[c] for look in looks if c in look) for c in range(len(job.concepts))),
                by_picture=tuple(tuple(look.values()) for look in looks) if len(looks) > 1 else (),
                curve=tuple(track.curve),
                losses={name: tuple(values) for name, values in track.losses.items()},
                steps=track.steps,
                sample_passes=track.steps * self.settings.batch
                + len(track.curve) * self.settings.probe_timesteps * len(job.looks),
                kept_step=track.best_step,
            )
            for job, track, looks in zip(self.pack.jobs, self._tracks, words, strict=True)
        ]

    def _look(self) -> None:
        """Look at every job that has not stopped: curve, maps, masks, and whether to stop."""
        self._read()
        self._forget_masks()
        active, mask = self._active, self.settings.looked_mask
        norms = torch.stack([self._rows[j].detach().norm(dim=-1).mean() for j in active]).tolist()
        looks = probe(
            self.model,
            [self.pack.jobs[j] for j in active],
            [self._probe_rows[j] for j in active],
            [self._rows[j].detach() for j in active],
            self.settings.batch,
            mask,
        )
        for j, look, norm in zip(active, looks, norms, strict=True):
            job, row, track = self.pack.jobs[j], self._rows[j], self._tracks[j]
            track.last_maps = look.maps
            if track.first_maps is None:
                track.first_maps = track.last_maps
            if mask:
                self._refresh_mask(look, job, track)
            track.curve.append(self._point(look, norm, track))
            if self.settings.stop:
                self._judge(look, row, track)
        self._last_look = self.step_number

    def _refresh_mask(self, look: Look, job: Job, track: _Track) -> None:
        settings = self.settings.looked_mask
        if settings.source == "given":
            if track.mask is None:
                side = look.maps.shape[-1]
                track.mask = job.masks.to(job.latents.dtype)
                track.small_mask = covered(track.mask, side).to(track.mask)
        else:
            mixed = look.mask_maps
            if settings.momentum and track.mask_maps is not None:
                mixed = settings.momentum * track.mask_maps + (1 - settings.momentum) * mixed
            track.mask_maps = mixed
            track.small_mask = cut_masks(mixed, job, settings)
            track.mask = to_latents(track.small_mask, job)
        united = torch.stack([row_mask(track.mask, view) for view in job.looks])
        track.area = float(united.mean()) if settings.on_loss else 1.0

    def _judge(self, look: Look, row: Tensor, track: _Track) -> None:
        """Keep the best look's rows; stop after too many looks that improved on it too little."""
        stop, loss = self.settings.stop, look.fixed_noise_loss
        gained = loss < track.best_loss * (1 - stop.min_gain) or track.best_rows is None
        track.misses = 0 if gained else track.misses + 1
        if loss < track.best_loss or track.best_rows is None:
            track.best_rows, track.best_maps = row.detach().clone(), track.last_maps
            track.best_step, track.best_loss = self.step_number, loss
        track.stopped = track.misses >= stop.patience

    def _point(self, look: Look, norm: float, track: _Track) -> CurvePoint:
        return CurvePoint(
            step=self.step_number,
            fixed_noise_loss=look.fixed_noise_loss,
            mask_area=track.area,
            norm=norm,
            prompt_similarity=look.prompt_similarity,
        )

    def _clipped(self, gradient: Tensor) -> Tensor:
        if self.settings.clip_norm is None:
            return gradient
        return gradient * (self.settings.clip_norm / gradient.norm().clamp_min(1e-12)).clamp_max(1.0)

    def save(self) -> bytes:
        """Everything that a later `resume` needs, as safetensors (no pickle)."""
        self._read()
        tensors: dict[str, Tensor] = {}
        for j, (row, track) in enumerate(zip(self._rows, self._tracks, strict=True)):
            tensors[f"{j}.rows"] = row.detach()
            tensors[f"{j}.generator"] = track.generator.get_state()
            for name in _TENSORS:
                if (value := getattr(track, name)) is not None:
                    tensors[f"{j}.{name}"] = value
            for name, value in self._adam.state.get(row, {}).items():
                tensors[f"{j}.adam.{name}"] = value
        story = {
            "step": self.step_number,
            "last_look": self._last_look,
            "numbers": [{name: getattr(track, name) for name in _NUMBERS} for track in self._tracks],
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
        self.step_number, self._last_look = story["step"], story["last_look"]
        self._unread.clear()
        self._forget_masks()
        for j, (row, track) in enumerate(zip(self._rows, self._tracks, strict=True)):
            with torch.no_grad():
                row.copy_(tensors[f"{j}.rows"])
            track.generator.set_state(tensors[f"{j}.generator"])
            for name in _TENSORS:
                value = tensors.get(f"{j}.{name}")
                setattr(track, name, value)
            if track.best_rows is not None:
                track.best_rows = track.best_rows.to(row)
            prefix = f"{j}.adam."
            state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if state:
                self._adam.state[row] = {
                    name: value.to(row.device) if name == "step" else value.to(row) for name, value in state.items()
                }
            track.curve = [CurvePoint(**point) for point in story["curves"][j]]
            track.losses = story["losses"][j]
            for name, value in story["numbers"][j].items():
                setattr(track, name, value)


def _words_by_picture(job: Job, rows: Tensor, last: Tensor, first: Tensor) -> list[dict[int, LearnedConcept]]:
    """For each picture, the concepts that it names, with their vectors and their maps there; maps [N, P, m, m]."""
    vectors = [own.cpu() for own in rows.chunk(len(job.concepts))]
    last, first = (normalise(maps.float()).cpu() for maps in (last, first))
    return [
        {c: LearnedConcept(job.concepts[c], vectors[c], last[n, c], first[n, c]) for c in named(look.sentence)}
        for n, look in enumerate(job.looks)
    ]


@torch.no_grad()
def _project(rows: list[Tensor], lengths: list[Tensor]) -> None:
    """Bring each row back to the length that it started with (fixed norm, DTI)."""
    scale = torch.cat(lengths) / torch.cat(rows).norm(dim=-1, keepdim=True).clamp_min(1e-12)
    torch._foreach_mul_(rows, list(scale.split([len(own) for own in rows])))


def _at_least_float32(model: BaseModel) -> torch.dtype:
    return torch.promote_types(model.dtype, torch.float32)


def _metadata(saved: bytes) -> dict[str, str]:
    length = int.from_bytes(saved[:8], "little")
    return json.loads(saved[8 : 8 + length])["__metadata__"]
