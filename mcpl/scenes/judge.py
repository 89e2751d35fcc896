"""The scene judge: which objects a picture of the world shows. A small detector, trained on renders only.

It looks at every 2x2 px cell (object centres lie on their corners) and says whether an object is centred there, and
which shape, colour and texture it has; "none" is the shape of blobs, merges and fragments, so that a smear is never
taken for the nearest shape; it is trained on what a diffusion model gets wrong (`training/judging.py`). A second
judge (`second_judge.py`) shares no weights and no learning with it; both use the world's outlines and the same
comparison (`matches`).

    reading = Judge.load().read(pictures)[0]
    matches(reading, scene).right
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from torch import nn

from mcpl.digests import ASSETS, check_files
from mcpl.errors import ConfigError
from mcpl.scenes.scene import Scene, SceneObject
from mcpl.scenes.world import COLOURS, RELATIONS, SHAPES, TEXTURES

CELL = 2  # px, side of a cell
KINDS = (*SHAPES, "none")
WEIGHTS = ASSETS / "scenes-v1" / "judge.safetensors"
THRESHOLD = 0.4  # least presence of an object's centre
APART = 2  # cells; of two centres nearer than this the weaker is dropped


@dataclass(frozen=True)
class SeenObject:
    """One object as the judge sees it: centre in px (x right, y down), area in px, confidence in its shape 0..1."""

    shape: str
    colour: str
    texture: str
    x: float
    y: float
    area: float
    confidence: float


@dataclass(frozen=True)
class Reading:
    """The objects that a picture shows, most certain first; their presence is over `THRESHOLD`."""

    objects: tuple[SeenObject, ...]


@dataclass(frozen=True)
class Verdict:
    """Does a picture show what a scene asks for? Each is about the whole picture.

    shape, colour, texture  every asked one is there, as often as asked, whatever carries it
    count                   as many objects as asked
    relation                the first lies on the asked side of the second; None where no relation is asked
    right                   all at once, on the same objects, and nothing else
    """

    shape: bool
    colour: bool
    texture: bool
    count: bool
    relation: bool | None
    right: bool


class JudgeNet(nn.Module):
    """Cells of a picture to their logits: [B, 3, H, W] in 0..1 to [B, channels of `HEADS`, H/2, W/2]."""

    HEADS = (1, len(KINDS), len(COLOURS), len(TEXTURES), 1)  # presence, shape, colour, texture, log area

    def __init__(self, width: int = 48, deep: int = 72):
        super().__init__()
        self.fine = nn.Sequential(_layer(3 * CELL**2, width), _layer(width, width))
        self.coarse = nn.Sequential(_layer(width, deep, stride=2), *(_layer(deep, deep, skip=True) for _ in range(4)))
        self.join = nn.Sequential(nn.Conv2d(width + deep, 64, 1), nn.SiLU(), _layer(64, 64))
        self.head = nn.Conv2d(64, sum(self.HEADS), 1)

    def trunk(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features of the cells, [B, 64, H/2, W/2]."""
        fine = self.fine(F.pixel_unshuffle(pictures * 2 - 1, CELL))
        coarse = F.interpolate(self.coarse(fine), scale_factor=2, mode="bilinear", align_corners=False)
        return self.join(torch.cat([fine, coarse], 1))

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.head(self.trunk(pictures)).split(self.HEADS, 1)


class _layer(nn.Module):
    def __init__(self, before: int, after: int, stride: int = 1, skip: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(after)
        self.skip = skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.silu(self.norm(self.conv(x)))
        return x + y if self.skip else y


class Judge:
    """Reads pictures of the world; `load` takes the shipped weights."""

    def __init__(self, net: JudgeNet):
        self.net = net.eval().requires_grad_(False)

    @staticmethod
    def load(path: Path = WEIGHTS) -> Judge:
        """The judge that a file holds; ConfigError where it is not the file that was recorded, or no judge."""
        check_files(path.parent, path.name)
        net = JudgeNet()
        try:
            state = {name: value.float() for name, value in load_file(path).items()}
            odd = net.load_state_dict(state, strict=False)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ConfigError(f"{path} is no judge: {' '.join(str(error).split())[:200]}; train it anew") from None
        missing = [name for name in odd.missing_keys if not name.endswith("num_batches_tracked")]  # counts, unused
        if missing or odd.unexpected_keys:
            told = f"lacks {missing[0]}" if missing else f"holds {odd.unexpected_keys[0]}"
            raise ConfigError(f"{path} is no judge of this version ({told}): train it anew")
        return Judge(net)

    def to(self, device: str) -> Judge:
        """The same judge, moved."""
        self.net.to(device)
        return self

    def save(self, path: Path) -> None:
        """Write the weights as fp16."""
        state = {k: v.half().contiguous() for k, v in self.net.state_dict().items() if "num_batches" not in k}
        save_file(state, path)

    @torch.no_grad()
    def features(self, pictures: np.ndarray) -> torch.Tensor:
        """What the judge sees, for comparing sets of pictures: uint8 [B, H, W, 3] to float [B, 128].

        Mean and greatest of each cell feature over the picture.
        """
        cells = self.net.trunk(self._tensor(pictures)).flatten(2)
        return torch.cat([cells.mean(2), cells.amax(2)], 1).cpu()

    @torch.no_grad()
    def read(self, pictures: np.ndarray) -> list[Reading]:
        """What each of the pictures shows: uint8 [B, H, W, 3] to B readings."""
        presence, *heads = (values.cpu() for values in self.net(self._tensor(pictures)))
        presence = presence.sigmoid()
        peaks = presence == F.max_pool2d(presence, 2 * APART + 1, 1, APART)
        found: list[list[SeenObject]] = [[] for _ in pictures]
        for row, _, i, j in ((presence > THRESHOLD) & peaks).nonzero().tolist():
            shape, colour, texture, area = (head[row, :, i, j] for head in heads)
            found[row].append(
                SeenObject(
                    KINDS[shape.argmax()],
                    tuple(COLOURS)[colour.argmax()],
                    TEXTURES[texture.argmax()],
                    float(j * CELL + CELL / 2),
                    float(i * CELL + CELL / 2),
                    area.exp().item(),
                    shape.softmax(0).max().item(),
                )
            )
        return [Reading(tuple(sorted(objects, key=lambda o: -o.confidence))) for objects in found]

    def _tensor(self, pictures: np.ndarray) -> torch.Tensor:
        there = next(self.net.parameters()).device
        return torch.from_numpy(np.ascontiguousarray(pictures)).to(there).permute(0, 3, 1, 2).float() / 255


def matches(reading: Reading, scene: Scene) -> Verdict:
    """The verdict on a picture that was asked to show `scene`."""
    asked, seen = scene.objects, reading.objects

    def all_there(trait: str) -> bool:
        want, have = (Counter(getattr(item, trait) for item in items) for items in (asked, seen))
        return not want - have

    # the seen objects that best fill the asked places, of equals the more certain; an empty place matches nothing
    places = [*seen, *[None] * max(0, len(asked) - len(seen))]
    fit = [[_likeness(a, s) - 1e-3 * rank / len(places) for rank, s in enumerate(places)] for a in asked]
    chosen = [places[place] for place in linear_sum_assignment(fit, maximize=True)[1]] if asked else []
    relation = None
    if scene.relation and len(asked) == 2:
        relation = None not in chosen and _stand(chosen[0], chosen[1], scene.relation)
    alike = all(_likeness(a, s) == 3 for a, s in zip(asked, chosen, strict=True))
    count = len(seen) == len(asked)
    return Verdict(
        all_there("shape"),
        all_there("colour"),
        all_there("texture"),
        count,
        relation,
        alike and count and relation is not False,
    )


def _likeness(asked: SceneObject, seen: SeenObject | None) -> int:
    """How many of shape, colour and texture agree."""
    if seen is None:
        return 0
    return (asked.shape == seen.shape) + (asked.colour == seen.colour) + (asked.texture == seen.texture)


def _stand(first: SeenObject, second: SeenObject, relation: str) -> bool:
    """Is the first on that side of the second, more along the relation's axis than across it?"""
    dx, dy = RELATIONS[relation]
    along = dx * (first.x - second.x) + dy * (first.y - second.y)
    across = abs(dy * (first.x - second.x) + dx * (first.y - second.y))
    return along > across
