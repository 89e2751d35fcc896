"""Name -> base model. A new kind of base is one adapter and one line in ARCHITECTURES or CATALOGUE."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import torch
from safetensors import SafetensorError

from mcpl.digests import ASSETS, check_files
from mcpl.errors import BankMismatch, ConfigError
from mcpl.models.base import BaseModel

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Entry:
    """A known base model."""

    source: str
    """directory, or hub id"""
    revision: str | None = None
    width: int | None = None
    """of a learned row, for those that are not at hand"""


CATALOGUE: dict[str, Entry] = {
    "scenes-v1": Entry(str(ASSETS / "scenes-v1")),
    "sd15": Entry("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14", width=768),
    "sdxl": Entry("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b", width=2048),
}


ARCHITECTURES: dict[str, str] = {
    "StableDiffusionPipeline": "stable_diffusion:StableDiffusion",
    "StableDiffusionXLPipeline": "stable_diffusion_xl:StableDiffusionXL",
    "LDMTextToImagePipeline": "latent_diffusion:LatentDiffusion",
}
"""Pipeline class that model_index.json names -> module:class of its adapter, imported when it is needed."""


def _adapted(kind: str, directory: Path, name: str, dtype: torch.dtype) -> BaseModel:
    from mcpl.models.stable_diffusion import files_digest

    module, _, adapter_name = ARCHITECTURES[kind].partition(":")
    adapter = getattr(import_module(f"mcpl.models.{module}"), adapter_name)
    pipeline = adapter.PIPELINE.from_pretrained(
        directory, dtype=dtype, use_safetensors=True, local_files_only=True, **adapter.OPTIONS
    )
    familiar = directory / "familiar.json"
    return adapter(
        pipeline,
        name,
        files_digest(directory),
        json.loads(familiar.read_text()) if familiar.is_file() else None,
    )


def _downloaded(entry: Entry) -> Path:
    """Directory of a hub model's files, downloaded unless they are there; first it is asked what it is."""
    from diffusers import DiffusionPipeline

    where = {"revision": entry.revision, "local_files_only": os.environ.get("HF_HUB_OFFLINE") == "1"}
    _check_kind(DiffusionPipeline.load_config(entry.source, **where).get("_class_name", "unknown"), entry.source)
    return Path(DiffusionPipeline.download(entry.source, use_safetensors=True, **where))


def load(
    name: str,
    revision: str | None = None,
    precision: str = "float32",
    device: str = "auto",
    expect_digest: str | None = None,
    save_memory: bool = False,
) -> BaseModel:
    """A frozen base by catalogue name, local directory (offline) or hub id; `revision`, or
    `owner/name@revision`, pins a hub model.

    save_memory trades time for memory (see BaseModel). Raises ConfigError where it cannot be had or cannot run on the
    device; BankMismatch where its digest is not `expect_digest`.
    """
    entry, chosen_device = find(name), pick_device(device)
    if precision == "float16" and chosen_device.type == "cpu":
        raise ConfigError("precision float16 needs an accelerator: on a CPU use bfloat16 or float32")
    if revision:
        entry = replace(entry, revision=revision)
    try:
        with quiet():
            directory = Path(entry.source) if Path(entry.source).is_dir() else _downloaded(entry)
            check_files(directory)
            kind = _check_kind(_kind(directory), entry.source)
            model = _adapted(kind, directory, name, DTYPES[precision])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"base model {name} cannot be loaded ({reason}): give --model a local directory in diffusers' layout"
        ) from None
    if expect_digest and model.facts.digest != expect_digest:
        raise BankMismatch(
            f"base {name} has digest {model.facts.digest}, but the words were learned with {expect_digest}: "
            "load the base that they belong to"
        )
    if save_memory:
        model.save_memory()
    return model.to(chosen_device)


def find(name: str) -> Entry:
    """What the catalogue knows of a name; ConfigError for what is neither there, nor a directory, nor a hub id."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    if Path(name).is_dir():
        return Entry(name)
    source, _, revision = name.partition("@")
    if name.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ConfigError(
            f"--model {name}: neither a directory, nor a hub id 'owner/name' or 'owner/name@revision', nor one of"
            f" {', '.join(CATALOGUE)}"
        )
    return Entry(source, revision or None)


def word_width(name: str) -> int:
    """Width of a learned row of a base, from its configuration alone; ConfigError where that is not at hand."""
    entry = find(name)
    if entry.width:
        return entry.width
    directory = Path(entry.source)
    if not directory.is_dir():
        raise ConfigError(f"--base {name}: not at hand; give its local directory, or one of {', '.join(CATALOGUE)}")
    _kind(directory)
    files = [directory / part / "config.json" for part in ("text_encoder", "text_encoder_2", "bert")]
    configs = [json.loads(path.read_text()) for path in files if path.is_file()]
    width = sum(config.get("hidden_size") or config.get("d_model") or 0 for config in configs)
    if not width:
        raise ConfigError(f"--base {name}: no configuration of a text encoder says how wide its words are")
    return width


def _kind(directory: Path) -> str:
    index = directory / "model_index.json"
    if not index.is_file():
        raise ConfigError(f"{directory}: no model_index.json; a base is a directory in diffusers' layout")
    try:
        return json.loads(index.read_text()).get("_class_name", "unknown")
    except ValueError as error:
        raise ConfigError(f"{index} is no JSON: {error}") from None


def _check_kind(kind: str, source: str) -> str:
    if kind not in ARCHITECTURES:
        raise ConfigError(f"{source}: model_index.json names {kind}; known are {', '.join(ARCHITECTURES)}")
    return kind


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Loading says what is wrong by raising; the libraries' advice and bars are for their own users."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    before = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging, verbosity in zip((diffusers_logging, transformers_logging), before, strict=True):
            logging.set_verbosity(verbosity)
            logging.enable_progress_bar()


def pick_device(device: str) -> torch.device:
    """'auto' is the first accelerator, else the CPU. Raises ConfigError for one that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} cannot be used here: {' '.join(str(error).split())[:120]}") from None
    return chosen
