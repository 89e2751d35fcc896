"""Encoders of pictures through transformers, with its PIL processors: no torchvision. Directory in, function out.

Pictures are [n, H, W, 3] uint8, features [n, F].
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from mcpl.errors import ConfigError
from mcpl.models.catalogue import quiet

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
READ = ("config.json", "preprocessor_config.json", *WEIGHTS)
"""files of a directory that decide what its encoder says; of the second kind PyTorch reads weights only"""


@dataclass(frozen=True)
class Encoder:
    """A frozen model behind the processor that its directory describes."""

    model: Any
    processor: Any
    pick: Callable[[Any], Tensor]
    """the model's output to its features"""

    def __call__(self, pictures: np.ndarray) -> Tensor:
        pixels = self.processor(list(pictures), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        return self.pick(self.model(pixel_values=pixels.to(self.model.device, self.model.dtype)))


def clip(directory: Path, device: torch.device) -> Encoder:
    """The projected image embedding, which CLIP compares with text."""
    from transformers import CLIPVisionModelWithProjection

    return _loaded(CLIPVisionModelWithProjection, directory, device, lambda output: output.image_embeds)


def dino(directory: Path, device: torch.device) -> Encoder:
    """The class token of the last layer, normalised: DINOv1 and DINOv2."""
    from transformers import AutoModel

    return _loaded(AutoModel, directory, device, lambda output: output.last_hidden_state[:, 0])


def _loaded(kind: Any, directory: Path, device: torch.device, pick: Callable[[Any], Tensor]) -> Encoder:
    from transformers import AutoImageProcessor

    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(directory, backend="pil", local_files_only=True)
            model = kind.from_pretrained(directory, local_files_only=True).eval().requires_grad_(False)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{directory} is no encoder of pictures: {' '.join(str(error).split())[:200]}") from None
    return Encoder(model.to(device), processor, pick)


def directory_of(source: str) -> Path:
    """Where an encoder's files are: a directory, or a hub id's, downloaded unless they are there. ConfigError where
    they cannot be had."""
    if Path(source).is_dir():
        return Path(source)
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ConfigError(f"{source} is neither a directory nor a hub id 'owner/name'")
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            offline = os.environ.get("HF_HUB_OFFLINE") == "1"
            return Path(snapshot_download(source, allow_patterns=list(READ), local_files_only=offline))
    except Exception as error:  # the hub's errors have no class in common, and all of them mean that
        raise ConfigError(f"{source} cannot be had: {' '.join(str(error).split())[:200]}") from None
