"""What a sweep searches, and on what: one YAML file with the recipe's own names. No Ray, no search yet.

    recipe: combined                                 where the search starts: a recipe's name, file or settings
    fixed: {initializer_length: words}               changed for every trial
    search:
      lr: {low: 1e-4, high: 3e-3, log: true}         a range; whole numbers at both ends give whole numbers
      attention_mask.momentum: {choices: [0, 0.5]}   dots reach into groups of settings
    sets: [unnamed-2]                                of Scenes-MC; or `dataset: URI` with masks

Every other field, with its meaning, is in `Space`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mcpl.config import Recipe, parse
from mcpl.data.storage import open_store
from mcpl.errors import ConfigError
from mcpl.recipes import adjust, load, read_table
from mcpl.settings import Settings
from mcpl.types import Example, Group

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = bool | int | float | str


class Knob(Settings):
    """The values that one setting may take, in Optuna's words."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = Field(False, description="spread over orders of magnitude")
    step: int | float | None = None
    choices: tuple[Value, ...] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Knob:
        ranged = self.low is not None and self.high is not None
        if ranged == bool(self.choices) or (ranged and not self.low < self.high):
            raise ValueError("give either low and high, low < high, or choices")
        if self.log and (self.step is not None or not self.low or self.low <= 0):
            raise ValueError("log needs low > 0 and takes no step")
        if self.step is not None and not (
            ranged and 0 < self.step <= self.high - self.low and (not self.whole or float(self.step).is_integer())
        ):
            raise ValueError("step lies in a range, above 0 and at most high - low, and is whole where both ends are")
        return self

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.whole:
            return IntDistribution(self.low, self.high, self.log, int(self.step or 1))
        return FloatDistribution(self.low, self.high, self.log, self.step)

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values at which a wrong setting would show."""
        return self.choices or (self.low, self.high)

    def holds(self, value: object) -> bool:
        return value in self.choices if self.choices else isinstance(value, int | float) and self._inside(value)

    def _inside(self, value: float) -> bool:
        step = self.step or (1 if self.whole else None)
        places = (value - self.low) / step if step else 0
        return self.low <= value <= self.high and abs(places - round(places)) < 1e-8  # Optuna's own tolerance


class Early(Settings):
    """ASHA (arXiv 1810.05934): the worse trials stop after their first packs."""

    signal: Literal["fixed_noise_gain", "score"] = Field(
        "fixed_noise_gain", description="share of the loss on fixed noise that is gone, or the objective itself"
    )
    grace: int = Field(1, ge=1, description="packs that every trial learns")
    reduction: float = Field(3, gt=1, description="one in so many goes on at each rung")


class Space(Settings):
    """What is searched, what is learned in a trial, and what is best."""

    kind: ClassVar[str] = "sweep"

    recipe: Recipe = Field("best", validate_default=True, description="where the search starts: name, file or settings")
    fixed: dict[str, Any] = Field({}, description="settings changed for every trial")
    search: dict[str, Knob] = Field(min_length=1)
    sets: tuple[str, ...] = Field((), description="of Scenes-MC")
    split: Literal["dev"] = Field("dev", description="a sweep tunes, and tuning is for the development split")
    dataset: str | None = Field(None, description="instead of sets: pictures with masks or truth")
    pictures: int | None = Field(None, ge=1, description="of each set; None: all")
    seeds: int = Field(2, ge=1, description="times that each picture is learned in a trial")
    pack: int = Field(6, ge=1, description="pictures that share a U-Net batch; a trial reports after each pack")
    samples: int = Field(2, ge=0, description="pictures drawn of each word, for right_object")
    objective: dict[str, float] = Field(
        {"right_object": 1.0, "assignment": 1.0}, min_length=1, description="metric -> weight of its mean"
    )
    cost: bool = Field(False, description="also make U-Net sample passes few: a front instead of one best")
    early: Early | None = Early()
    startup: int = Field(10, ge=1, description="trials drawn at random before TPE chooses")
    seed: int = 0

    @field_validator("recipe", mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        return load(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _learns_something(self) -> Space:
        if bool(self.sets) == bool(self.dataset):
            raise ValueError("give either sets (of Scenes-MC) or dataset")
        return self

    @property
    def start(self) -> Recipe:
        """The recipe that the search starts from, fixed settings included."""
        return changed(self.recipe, self.fixed)

    @property
    def whole(self) -> Space:
        """The same for a worker anywhere, who has none of our files: the recipe as values, the dataset as full URI."""
        dataset = self.dataset and open_store(self.dataset).uri
        return self.model_copy(update={"recipe": self.start, "fixed": {}, "dataset": dataset})

    @property
    def digest(self) -> str:
        """Changes when the pictures do, wherever they lie."""
        return pictures_digest(self.sets, self.split, self.dataset)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "space": self.model_dump(mode="json", exclude={"recipe", "fixed", "dataset"}),
            "recipe": self.start.model_dump(mode="json", exclude={"name"}),
            "pictures": self.digest,
        }

    def deciding(self, identity: dict[str, Any]) -> dict[str, Any]:
        """All of it."""
        return identity

    def recipe_of(self, values: Mapping[str, Value], name: str) -> Recipe:
        """The recipe with a trial's values."""
        return changed(self.start, dict(values) | {"name": name})

    @property
    def start_values(self) -> dict[str, Value]:
        """The starting recipe's own values, where they lie in the space."""
        return {path: value for path, value in self._own_values().items() if self.search[path].holds(value)}

    @property
    def outside(self) -> dict[str, Any]:
        """The starting recipe's values that do not lie in the space: no trial can be that recipe."""
        return {path: value for path, value in self._own_values().items() if not self.search[path].holds(value)}

    def _own_values(self) -> dict[str, Any]:
        start = self.start.model_dump(mode="json")
        return {path: _at(start, path) for path in self.search}


def read_space(path: Path) -> Space:
    """The space of a YAML file; ConfigError before anything is learned where a name or a value is wrong."""
    if not path.is_file():
        raise ConfigError(f"--space {path}: no such file")
    values = read_table(path, "a space is a table with at least `search` and `sets`")
    space = parse(Space, values, str(path))
    for setting, knob in space.search.items():
        for value in knob.ends:
            try:
                changed(space.start, {setting: value})
            except ConfigError as error:
                raise ConfigError(f"{path}: search.{setting}: {error}") from None
    return space


def changed(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with settings changed, named with dots where they lie in groups: `attention_mask.threshold`."""
    tree = recipe.model_dump(mode="json")
    for path, value in values.items():
        *groups, last = path.split(".")
        place = tree
        for group in groups:
            place = place.get(group) if isinstance(place, dict) else None
        if not isinstance(place, dict) or (groups and last not in place):
            raise ConfigError(f"recipe {recipe.name} has no setting {path!r}, or it is switched off there")
        place[last] = value
    return adjust(parse(Recipe, tree, "recipe"))


def _at(tree: Any, path: str) -> Any:
    for part in path.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def pictures_digest(sets: Iterable[str], split: str, dataset: str | None) -> str:
    """Changes when the pictures of sets, or of a dataset instead of them, do; wherever they lie."""
    from mcpl.data.dataset import Dataset
    from mcpl.scenes.benchmark import frozen

    if dataset:
        return Dataset.open(dataset).digest
    recorded = frozen()
    return " ".join(f"{name} {recorded.get(name, {}).get(split)}" for name in sets)


@cache
def examples(sets: tuple[str, ...], split: str, dataset: str | None, count: int | None) -> tuple[Example | Group, ...]:
    """The pictures, and groups of pictures, that every trial learns, in the same order."""
    from mcpl.data import groups
    from mcpl.data.dataset import Dataset
    from mcpl.data.sources import scenes_mc

    def each() -> Iterator[Iterable[Example | Group]]:
        if dataset:
            yield groups.every(Dataset.open(dataset))
        for name in sets:
            yield groups.gathered(scenes_mc(name, split))

    return tuple(example for pictures in each() for example in islice(pictures, count))
