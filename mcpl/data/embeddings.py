"""Embedding files, one learned word at a time: written in one layout, read in every layout that is about.

| who wrote it | what is in it |
|---|---|
| diffusers, mcpl | one tensor, named as the word |
| SD XL, whoever wrote it | `clip_l` and `clip_g` |
| kohya | `emb_params` |
| OneTrainer | `emp_params` |
| A1111 (.pt) | `string_to_param` with one `*`, and a `name` |
| the paper's release (.pt) | `string_to_param`, a ParameterDict of several words |

No pickle is ever executed: .pt and .bin go through PyTorch's weights-only reader, which knows a fixed list of harmless
types; ParameterDict, which the paper's release stores, is the only one that is added.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mcpl.errors import ConfigError
from mcpl.prompts import SLUG_RULE, is_slug

if TYPE_CHECKING:
    from torch import Tensor

SDXL = {"clip_l": 768, "clip_g": 1280}
"""Tensor of an SD XL file -> width of the text encoder that it belongs to; a learned row is both, side by side."""
BERT = 1280
"""width of a learned row of the paper's own base"""


@dataclass(frozen=True)
class Family:
    """Base models whose words are alike."""

    name: str
    architecture: str
    """what ModelSpec calls it"""
    resolution: str


FAMILIES = {
    768: Family("Stable Diffusion 1.x", "stable-diffusion-v1/textual-inversion", "512x512"),
    1024: Family("Stable Diffusion 2.x", "stable-diffusion-v2-512/textual-inversion", "512x512"),
    BERT: Family("latent diffusion text-to-image 256 (BERT)", "latent-diffusion/textual-inversion", "256x256"),
    sum(SDXL.values()): Family("Stable Diffusion XL", "stable-diffusion-xl-v1-base/textual-inversion", "1024x1024"),
}
"""Width of a learned row -> the bases that have it."""

LARGEST = 64 << 20
"""bytes; an embedding file is kilobytes, what is larger is a checkpoint"""
MOST_VECTORS, WIDEST = 256, 1 << 14
"""of one word; a file may claim any shape, and is not believed"""


@dataclass(frozen=True)
class Embedding:
    """One word as a file tells it."""

    word: str
    """as the file, or the file's name, has it"""
    vectors: np.ndarray = field(repr=False)
    """[n, D] float32; SD XL: [n, 768 + 1280]"""
    layout: str
    """who writes such files"""
    header: Mapping[str, str] = field(default_factory=dict, repr=False)


def slug_of(word: str, where: str) -> str:
    """The slug of a word, its angle brackets and capitals taken off; ConfigError where it cannot be a placeholder."""
    slug = word.strip().removeprefix("<").removesuffix(">").lower()
    if not is_slug(slug):
        raise ConfigError(f"{where}: {word!r} cannot be a placeholder: {SLUG_RULE}{_suggestion(slug)}")
    return slug


def _suggestion(slug: str) -> str:
    near = re.sub(r"[^a-z0-9]+", "-", slug).strip("-0123456789") or "word"
    return f", such as <{near}>"


def safetensors_file(slug: str, vectors: np.ndarray, header: Mapping[str, str]) -> bytes:
    """One word [n, D] as diffusers' `load_textual_inversion` takes it: one tensor `<slug>`; at SD XL's width two,
    `clip_l` and `clip_g`. The header is ModelSpec 1.0.1; empty values are left out."""
    from safetensors.numpy import save

    slug_of(slug, "the learned word")
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    tensors = {f"<{slug}>": vectors}
    if vectors.shape[1] == sum(SDXL.values()):
        parts = np.split(vectors, np.cumsum([*SDXL.values()])[:-1], axis=1)
        tensors = dict(zip(SDXL, map(np.ascontiguousarray, parts), strict=True))
    family = FAMILIES.get(vectors.shape[1])
    bare = save(tensors)
    told = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": family.architecture if family else f"{header.get('mcpl.base')}/textual-inversion",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": f"<{slug}>",
        "modelspec.trigger_phrase": f"<{slug}>",
        "modelspec.resolution": family.resolution if family else "",
        "modelspec.hash_sha256": "0x" + hashlib.sha256(bare[8 + int.from_bytes(bare[:8], "little") :]).hexdigest(),
        **header,
    }
    return save(tensors, {name: text for name, text in told.items() if text})


def a1111_file(slug: str, vectors: np.ndarray, steps: int, base: str) -> bytes:
    """One word [n, D] as A1111's pickled .pt, for those who ask for it."""
    import torch

    slug_of(slug, "the learned word")
    if vectors.shape[1] == sum(SDXL.values()):
        raise ConfigError(
            f"<{slug}> belongs to SD XL, whose words A1111 takes as safetensors: leave out --format a1111"
        )
    content = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.tensor(vectors)},
        "name": slug,
        "step": steps,
        "sd_checkpoint": None,
        "sd_checkpoint_name": base,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def read(path: str | os.PathLike) -> list[Embedding]:
    """The words in a file of any known layout; its content decides, not its name.

    ConfigError, in one sentence, for everything else; nothing in a file is ever executed.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    if path.stat().st_size > LARGEST:
        raise ConfigError(f"{path} has {path.stat().st_size >> 20} MB: that is a model, not a learned word")
    data = path.read_bytes()
    tensors, header = _safetensors(data, path) if data[8:9] == b"{" else (_pickled(data, path), {})
    if beyond := [name for name in map(str, tensors) if name.endswith("_out")]:
        raise ConfigError(
            f"{path} holds {beyond[0]}, added behind the text encoder: mcpl learns and reads what goes in"
        )
    for layout, look in LAYOUTS.items():
        if found := look(tensors):
            stem = path.parent.name if path.stem == "learned_embeds" else path.stem
            unnamed = header.get("modelspec.trigger_phrase") or stem
            return [Embedding(word or unnamed, _vectors(v, path), layout, header) for word, v in found.items()]
    some = ", ".join(list(map(str, tensors))[:3]) or "nothing"
    raise ConfigError(f"{path} holds {len(tensors)} entries ({some} ...): no layout of learned words is like that")


def _safetensors(data: bytes, path: Path) -> tuple[Mapping, dict[str, str]]:
    import json

    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
    except SafetensorError as fault:
        raise ConfigError(f"{path} is no whole safetensors file ({fault})") from None
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, header.get("__metadata__") or {}


def _pickled(data: bytes, path: Path) -> Mapping:
    """The dictionary in a .pt or .bin file, read without executing anything in it."""
    import pickle

    import torch
    from torch.nn import ParameterDict

    try:
        if data[:2] == b"PK":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if sum(member.file_size for member in archive.infolist()) > LARGEST:
                    raise ConfigError(f"{path} unpacks to more than {LARGEST >> 20} MB: that is no learned word")
        with torch.serialization.safe_globals([ParameterDict]):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as fault:
        asked = re.search(r"GLOBAL ([\w.]+)", str(fault))
        wants = f"asks for {asked[1]}" if asked else "is no file of tensors"
        raise ConfigError(
            f"{path} {wants}: it was not opened further, since a pickle can run any program; "
            "ask for the word as safetensors"
        ) from None
    except (RuntimeError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as fault:
        raise ConfigError(f"{path} is damaged, or no embedding file ({' '.join(str(fault).split())[:120]})") from None
    if _is_tensor(content):
        return {"": content}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} holds a {type(content).__name__}, not a table of tensors")
    return content


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


Found = dict[str, Sequence["Tensor"]]
"""word, or '' where the file does not say -> its tensors, side by side"""


def _sd_xl(tensors: Mapping) -> Found:
    return {"": [tensors[part] for part in SDXL]} if set(SDXL) <= set(tensors) else {}


def _kohya(tensors: Mapping) -> Found:
    return {"": [tensors["emb_params"]]} if "emb_params" in tensors else {}


def _onetrainer(tensors: Mapping) -> Found:
    return {"": [tensors["emp_params"]]} if "emp_params" in tensors else {}


def _a1111(tensors: Mapping) -> Found:
    words = _table(tensors.get("string_to_param"))
    return {str(tensors.get("name") or ""): [words["*"]]} if set(words) == {"*"} else {}


def _release(tensors: Mapping) -> Found:
    return {str(word): [vectors] for word, vectors in _table(tensors.get("string_to_param")).items()}


def _diffusers(tensors: Mapping) -> Found:
    return {str(word): [v] for word, v in tensors.items() if _is_tensor(v)} if len(tensors) == 1 else {}


LAYOUTS: dict[str, Callable[[Mapping], Found]] = {
    "SD XL": _sd_xl,
    "kohya": _kohya,
    "OneTrainer": _onetrainer,
    "A1111": _a1111,
    "MCPL release": _release,
    "diffusers": _diffusers,
}
"""Asked in turn; the first that finds words has read the file."""


def _table(value: object) -> Mapping:
    """A mapping, or what a ParameterDict of any PyTorch version holds."""
    if isinstance(value, Mapping):
        return value
    return getattr(value, "__dict__", {}).get("_parameters") or {}


def _vectors(parts: Sequence[Tensor], path: Path) -> np.ndarray:
    """Tensors [n, d] (or [d]) of one word side by side as float32 [n, D]; ConfigError for anything else."""
    import torch

    for part in parts:
        usual = _is_tensor(part) and part.is_floating_point() and part.layout is torch.strided and not part.is_meta
        shape = tuple(part.shape) if usual else ()
        if (
            len(shape) not in (1, 2)
            or 0 in shape
            or shape[-1] > WIDEST
            or (len(shape) == 2 and shape[0] > MOST_VECTORS)
        ):
            raise ConfigError(f"{path}: {shape or type(part).__name__} is not the shape of a few vectors [n, width]")
    rows = [torch.atleast_2d(part.detach()).to(torch.float32) for part in parts]
    if len({len(each) for each in rows}) > 1:
        raise ConfigError(f"{path}: its encoders have {[len(each) for each in rows]} vectors; they must be as many")
    joined = torch.cat(rows, dim=1)
    if not joined.isfinite().all():
        raise ConfigError(f"{path} holds numbers that are not finite: the word was not learned well, learn it again")
    return np.ascontiguousarray(joined.numpy())
