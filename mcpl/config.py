"""RunConfig = Recipe (what decides the result, fingerprinted) + Placement (where it runs, never is)."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from mcpl.errors import ConfigError
from mcpl.learning.settings import LearningSettings
from mcpl.prompts import WORDS_RULE, listed_nouns
from mcpl.settings import Settings


class Recipe(LearningSettings):
    """Everything that decides what a picture's words become. Two equal recipes have equal fingerprints."""

    name: str = "custom"
    base: str = Field("scenes-v1", description="catalogue name, hub id or local directory of the base model")
    revision: str | None = Field(None, description="pinned revision of a hub model")
    precision: Literal["float32", "float64", "bfloat16", "float16"] = Field(
        "float32", description="of the base's networks; learned rows stay in float32. float16 needs an accelerator"
    )
    words: str = Field("marked", description=f"what is learned: {WORDS_RULE}, comma-separated")

    @field_validator("words")
    @classmethod
    def _known_words(cls, value: str) -> str:
        try:
            listed_nouns(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def fingerprint(self) -> str:
        """16 hex digits over every field but the names: of the recipe, and of the base, whose digest says more."""
        content = json.dumps(self.model_dump(mode="json", exclude={"name", "base", "revision"}), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


class Placement(Settings):
    """Where and how fast a run happens. Never changes what is learned."""

    workers: int = Field(1, ge=1)
    min_workers: int | None = Field(None, ge=1, description="begin with so many and grow; None: always `workers`")
    pack: int | Literal["auto"] = Field(4, description="pictures that share a U-Net batch; 'auto' asks the device")
    shard_size: int = Field(16, ge=1, description="pictures leased and committed together; fixed by the first run")
    threads: int | None = Field(
        None, ge=1, description="threads on a CPU; None: a worker's share of CPUs, and what a single command measures"
    )
    device: str = Field("auto", description="'auto', 'cpu', 'cuda', 'cuda:1' ...")
    gpus_per_worker: float = Field(0, ge=0, description="Ray's share; 0 keeps the worker on the CPU")
    cpus_per_worker: float = Field(1, ge=0)
    max_failed_share: float = Field(0.1, ge=0, le=1, description="more failed pictures than this fail the run")
    samples: int = Field(0, ge=0, description="pictures drawn of each word for scoring and looking")
    save_memory: bool = Field(False, description="compute activations twice rather than keep them")
    retry_failed: bool = Field(False, description="learn recorded failures again")

    @property
    def worker_threads(self) -> int:
        """Threads of a run's worker: never left to the clock, so that a resumed run computes as it began."""
        return self.threads or max(1, int(self.cpus_per_worker))

    @field_validator("pack")
    @classmethod
    def _some_pictures(cls, value: int | str) -> int | str:
        if value != "auto" and value < 1:
            raise ValueError("must be at least 1, or 'auto'")
        return value

    @model_validator(mode="after")
    def _fewest_first(self) -> Placement:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers = {self.min_workers} is more than workers = {self.workers}")
        return self


def worker_counts(text: str) -> dict[str, int | None]:
    """`--workers`: "8", or "2:8" for a run that begins with two and grows to eight as the cluster has room."""
    match = re.fullmatch(r"(?:(\d+):)?(\d+)", text.strip())
    if match is None:
        raise ConfigError(f"--workers {text}: give a number, or a range such as 2:8")
    return {"workers": int(match[2]), "min_workers": int(match[1]) if match[1] else None}


def pack_size(text: str) -> int | str:
    """`--pack`: a number, or "auto"."""
    if text != "auto" and not text.isdecimal():
        raise ConfigError(f"--pack {text}: give a number, or auto")
    return text if text == "auto" else int(text)


class Memory(Settings):
    """What fits a device of so many gigabytes, for bases of the size of Stable Diffusion."""

    pack: int
    save_memory: bool
    precision: str


MEMORY: dict[int, Memory] = {
    8: Memory(pack=1, save_memory=True, precision="bfloat16"),
    12: Memory(pack=1, save_memory=True, precision="bfloat16"),
    24: Memory(pack=4, save_memory=True, precision="bfloat16"),
}
"""`--vram` in GB -> settings. 12 and 24 hold SD XL too, 8 holds SD 1.x and 2.x: docs/decisions/0006-real-bases.md."""


def fitted(recipe: Recipe, placement: Placement, vram: int | None) -> tuple[Recipe, Placement]:
    """Recipe and placement for a device of `vram` GB; unchanged for None. The recipe's precision, and so its
    fingerprint, may change with it."""
    if vram is None:
        return recipe, placement
    if vram not in MEMORY:
        raise ConfigError(f"--vram {vram}: there are presets for {', '.join(map(str, MEMORY))} GB")
    memory = MEMORY[vram]
    changes = {"pack": memory.pack, "save_memory": memory.save_memory}
    return recipe.model_copy(update={"precision": memory.precision}), placement.model_copy(update=changes)


class RunConfig(Settings):
    """One run: what to learn from, where to put it, how to learn, where to run, who to tell."""

    dataset: str
    output: str
    recipe: Recipe
    placement: Placement = Placement()
    tracking_uri: str | None = Field(
        None,
        description="MLflow; None: MLFLOW_TRACKING_URI, else SQLite beside the output, and in the working directory"
        " where that is s3://",
    )
    experiment: str = "mcpl"


def parse(cls: type[Settings], values: dict, where: str) -> Settings:
    """`cls(**values)`, or a one-line ConfigError naming each wrong field, its value and what is allowed."""
    try:
        return cls(**values)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'value'} = {e['input']!r}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        )
        raise ConfigError(f"{where}: {faults}") from None
