"""A trained base as a folder that `StableDiffusionPipeline.from_pretrained` loads, fp16, digest beside it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from mcpl.scenes.training.job import resumed
from mcpl.scenes.training.loop import Trainer

TOP = ("model_index.json", "judge.safetensors", "familiar.json")  # files of the export that lie in no subfolder


def pipeline(trainer: Trainer, vae: AutoencoderKL) -> StableDiffusionPipeline:
    """The model in training as a pipeline, with copies of its averaged weights."""
    text_encoder, unet = trainer.averaged()
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=trainer.tokenizer,
        unet=unet,
        scheduler=trainer.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(pipe: StableDiffusionPipeline, folder: Path) -> str:
    """Write the pipeline as fp16 safetensors and record the digest, which is returned."""
    pipe.to(dtype=torch.float16).save_pretrained(folder)
    for path in folder.glob("*/config.json"):  # diffusers writes down where a part was loaded from
        settings = json.loads(path.read_text())
        if settings.pop("_name_or_path", None):
            path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    return write_digest(folder)


def export_run(run: Path, vae: Path, judge: Path, folder: Path) -> str:
    """Export the run in directory `run` with its autoencoder and judge; returns the digest."""
    pipe = pipeline(resumed(run), AutoencoderKL.from_pretrained(vae, local_files_only=True))
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(judge, folder / "judge.safetensors")
    (folder / "familiar.json").unlink(missing_ok=True)  # measured on other weights
    return export(pipe, folder)


def file_digests(folder: Path) -> dict[str, str]:
    """sha256 of every file that decides what the pipeline draws, the judge says and `mcpl learn` warns of."""
    files = [*(p for p in folder.glob("*/*") if p.is_file()), *(folder / name for name in TOP)]
    files = sorted(p for p in files if p.exists())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def write_digest(folder: Path) -> str:
    """Write `digest.json`: each file's sha256 and one over them all, which is returned."""
    files = file_digests(folder)
    whole = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    (folder / "digest.json").write_text(json.dumps({"sha256": whole, "files": files}, indent=1) + "\n")
    return whole
