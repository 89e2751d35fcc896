"""Feature spaces in which sets of pictures are compared: one FEATURES table, a line each.

CLIP, DINOv1 and DINOv2 are those of the paper. Where they cannot be had, the scene judge's own features stand in, and
are called what they are: "judge". They tell scenes of the small world apart, and know nothing of real pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mcpl.digests import ASSETS
from mcpl.errors import ConfigError
from mcpl.models import encoders

BATCH = 16
"""pictures encoded at once"""


@dataclass(frozen=True)
class Kind:
    """A kind of encoder."""

    source: str
    """directory or hub id where none is given"""
    load: Callable[[Path, torch.device], Callable[[np.ndarray], Tensor]]
    """directory, device -> pictures [n, H, W, 3] uint8 to features [n, F]"""
    files: tuple[str, ...] = encoders.READ
    """of a directory that decide what its encoder says"""


@dataclass(frozen=True)
class FeatureSpace:
    """A frozen encoder of pictures."""

    name: str
    encode: Callable[[np.ndarray], Tensor]

    @torch.no_grad()
    def __call__(self, pictures: Tensor | np.ndarray) -> np.ndarray:
        """Pictures [n, H, W, 3] uint8 to features [n, F] float32."""
        pictures = np.asarray(pictures)
        parts = [self.encode(pictures[at : at + BATCH]) for at in range(0, len(pictures), BATCH)]
        return torch.cat(parts).float().cpu().numpy()


def _judge(directory: Path, device: torch.device) -> Callable[[np.ndarray], Tensor]:
    """Mean and greatest of the scene judge's cell features."""
    from mcpl.scenes.judge import Judge

    return Judge.load(directory / "judge.safetensors").features


FEATURES: dict[str, Kind] = {
    "judge": Kind(str(ASSETS / "scenes-v1"), _judge, ("judge.safetensors",)),
    "clip": Kind("openai/clip-vit-base-patch32", encoders.clip),
    "dinov1": Kind("facebook/dino-vits16", encoders.dino),
    "dinov2": Kind("facebook/dinov2-small", encoders.dino),
}


def named(features: str) -> tuple[str, ...]:
    """`--features`: names, each perhaps with its directory, by commas; "none" for none."""
    return tuple(name.strip() for name in features.split(",") if name.strip() not in ("", "none"))


def find(told: str) -> tuple[str, str, str]:
    """(name, source, digest) of "clip", "clip=DIRECTORY" or "clip=owner/name"; the source is empty where it is the
    name's own, which every machine finds for itself.

    Raises ConfigError for a name that FEATURES lacks, and for an encoder that cannot be had.
    """
    name, _, source = told.strip().partition("=")
    if name not in FEATURES:
        raise ConfigError(f"--features {told}: there are {', '.join(FEATURES)}, each also as NAME=DIRECTORY")
    if source and Path(source).is_dir():
        source = str(Path(source).resolve())  # workers stand elsewhere
    return name, source, _digest(name, _directory(name, source))


def load(name: str, source: str, digest: str, device: torch.device = torch.device("cpu")) -> FeatureSpace:
    """The encoder that `find` told of. Raises ConfigError where another one lies there now."""
    directory = _directory(name, source)
    if _digest(name, directory) != digest:
        there = source or FEATURES[name].source
        raise ConfigError(f"--features {name}: {there} is another encoder than when this evaluation began")
    return FeatureSpace(name, FEATURES[name].load(directory, device))


def _directory(name: str, source: str) -> Path:
    try:
        return encoders.directory_of(source or FEATURES[name].source)
    except ConfigError as error:
        raise ConfigError(
            f"--features {name}: {error}; give a local directory as {name}=DIRECTORY, or use judge, the scene judge's"
            " own features, for pictures of its world"
        ) from None


def _digest(name: str, directory: Path) -> str:
    """16 hex digits over the files that decide."""
    files = [directory / each for each in FEATURES[name].files if (directory / each).is_file()]
    if not any(path.suffix in (".safetensors", ".bin") for path in files):
        raise ConfigError(f"--features {name}: {directory} holds no weights ({' or '.join(encoders.WEIGHTS)})")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
