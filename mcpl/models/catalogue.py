"""Name -> base model. A new kind of base is one adapter and one line in ARCHITECTURES or CATALOGUE."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from mcpl.errors import BankMismatch, ConfigError
from mcpl.models.base import BaseModel

ASSETS = Path(__file__).resolve().parent.parent / "assets"
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class Entry:
    """A known base model."""

    source: str
    """directory, or hub id"""
    revision: str | None = None
    neutral_words: tuple[str, ...] = ("object",)
    closed_vocabulary: bool = False


CATALOGUE: dict[str, Entry] = {
    "scenes-v1": Entry(str(ASSETS / "scenes-v1"), neutral_words=("thing",), closed_vocabulary=True),
    "sd15": Entry("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),
}


def _stable_diffusion(source: str, entry: Entry, name: str, dtype: torch.dtype, local: bool) -> BaseModel:
    from diffusers import StableDiffusionPipeline

    from mcpl.models.stable_diffusion import StableDiffusion, files_digest

    directory = Path(source)
    if not local:
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        directory = Path(
            StableDiffusionPipeline.download(
                source, revision=entry.revision, use_safetensors=True, local_files_only=offline
            )
        )
    pipeline = StableDiffusionPipeline.from_pretrained(
        directory,
        dtype=dtype,
        use_safetensors=True,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    familiar = directory / "familiar.json"
    return StableDiffusion(
        pipeline,
        name,
        files_digest(directory),
        entry.neutral_words,
        entry.closed_vocabulary,
        json.loads(familiar.read_text()) if familiar.is_file() else None,
    )


ARCHITECTURES: dict[str, Callable[..., BaseModel]] = {"StableDiffusionPipeline": _stable_diffusion}


def find(name: str) -> Entry:
    """Where a base lies, without loading it; ConfigError for what can be no base."""
    entry = CATALOGUE.get(name) or Entry(name)
    hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if name not in CATALOGUE and not hub_id and not Path(name).is_dir():
        raise ConfigError(
            f"--model {name}: neither a directory, nor a hub id 'owner/name', nor one of {', '.join(CATALOGUE)}"
        )
    return entry


def load(
    name: str,
    revision: str | None = None,
    precision: str = "float32",
    device: str = "auto",
    expect_digest: str | None = None,
) -> BaseModel:
    """A frozen base by catalogue name, local directory (offline) or hub id; `revision` pins a hub model.

    Raises ConfigError where it cannot be had; BankMismatch where its digest is not `expect_digest`.
    """
    entry = find(name)
    source, local = entry.source, Path(entry.source).is_dir()
    if revision:
        entry = replace(entry, revision=revision)
    if local and Path(source).is_relative_to(ASSETS):
        _check_shipped(Path(source))
    kind = _kind(Path(source)) if local else "StableDiffusionPipeline"
    if kind not in ARCHITECTURES:
        raise ConfigError(f"{source}: model_index.json names {kind}; known are {', '.join(ARCHITECTURES)}")
    try:
        with _quiet():
            model = ARCHITECTURES[kind](source, entry, name, DTYPES[precision], local)
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
    return model.to(pick_device(device))


def _kind(directory: Path) -> str:
    index = directory / "model_index.json"
    if not index.is_file():
        raise ConfigError(f"{directory}: no model_index.json; a base is a directory in diffusers' layout")
    try:
        return json.loads(index.read_text()).get("_class_name", "unknown")
    except ValueError as error:
        raise ConfigError(f"{index} is no JSON: {error}") from None


def _check_shipped(directory: Path) -> None:
    """The shipped files are what their record says, or a ConfigError names the first that is not."""
    record = directory / "digest.json"
    if not record.is_file():
        raise ConfigError(f"{directory}: no digest.json beside the shipped base: install the package again")
    for name, expected in json.loads(record.read_text())["files"].items():
        path = directory / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ConfigError(f"{path} is not the file that was shipped: install the package again")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
