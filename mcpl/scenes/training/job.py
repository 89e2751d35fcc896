"""One worker's whole training of the base: configuration, resuming, reporting, previews. Knows no Ray."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from mcpl.errors import ConfigError
from mcpl.scenes.training.latents import decode, tensor_to_pictures
from mcpl.scenes.training.loop import BaseConfig, Trainer, train
from mcpl.scenes.training.preview import PROMPTS, sample_latents, sheet


class Job(BaseModel):
    """A base configuration and where and how long it trains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: BaseConfig
    folder: Path
    source: Path | None = None  # where the weights come from, when `folder` has none yet
    until: int | None = None
    minutes: float = 1e9
    gpu: bool = False

    @staticmethod
    def from_options(options: dict[str, Any]) -> Job:
        """From command-line options: a run goes on with the configuration it was begun with, save for what is told."""
        # absolute, because workers stand in another directory
        folder, source = (path and Path(path).resolve() for path in (options["out"], options["resume"]))
        begun = [place / "state.json" for place in (folder, source) if place and (place / "state.json").exists()]
        if options["finish"] and not begun:
            raise ConfigError(f"--finish: neither {folder} nor --resume holds a state.json; train there first")
        state = json.loads(begun[0].read_text()) if begun else {"config": {}, "cursor": 0}
        told = {name: options[name] for name in BaseConfig.model_fields if options.get(name) is not None}
        shape = {name: options[name] for name in ("pixels", "channels") if options.get(name) is not None}
        values = {**state["config"], **told}
        values["shape"] = {**values.get("shape", {}), **shape}
        if options["finish"]:
            values.setdefault("decay_from", None)
            values["decay_from"] = state["cursor"]
            values["decay_samples"] = options["decay_samples"] or max(1, state["cursor"] // 9)
            folder, source = folder / "finish", begun[0].parent
        folder.mkdir(parents=True, exist_ok=True)
        return Job(
            config=BaseConfig(**values),
            folder=folder,
            source=source,
            until=options["until"],
            minutes=options["minutes"],
            gpu=options["gpu"],
        )


def work(job: Job, *, rank: int, world: int) -> None:
    """Train on this worker; rank 0 reports to `progress.jsonl`, saves and draws `preview-*.png` in the run's folder."""
    torch.set_num_threads(1)
    with open(job.folder / "pids", "a") as pids:
        print(os.getpid(), file=pids)
    begun = [place for place in (job.folder, job.source) if place and (place / "state.json").exists()]
    trainer = Trainer(job.config, device="cuda" if job.gpu else "cpu", rank=rank, world=world, fresh=not begun)
    if begun:
        trainer.load(begun[0])

    def report(line: dict[str, Any]) -> None:
        with open(job.folder / "progress.jsonl", "a") as log:
            log.write(json.dumps({"time": time.strftime("%H:%M:%S"), **line}) + "\n")
        print(line, flush=True)

    train(trainer, job.folder, until=job.until, minutes=job.minutes, report=report, show=lambda t: preview(t, job))


def resumed(folder: Path) -> Trainer:
    """The model in training that `folder` holds, on this machine's CPU."""
    config = BaseConfig(**json.loads((folder / "state.json").read_text())["config"])
    trainer = Trainer(config, fresh=False)
    trainer.load(folder)
    return trainer


def preview(trainer: Trainer, job: Job) -> None:
    """Pictures of the standing prompts from the averaged weights, decoded by the code alone."""
    text_encoder, unet = trainer.averaged()
    latents = sample_latents(unet, text_encoder, trainer.tokenizer, trainer.scheduler, PROMPTS)
    sheet(tensor_to_pictures(decode(latents)), job.folder / f"preview-{trainer.cursor}.png")
