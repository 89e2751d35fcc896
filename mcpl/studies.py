"""What each study compares: a grid of named cells, what its report shows, and what it must be read with.

A cell is a recipe on a set of Scenes-MC whose sentences are told in some way; `against` names the cell that it is
compared with, picture by picture. A new study is a function and one line of `STUDIES`. Nothing is learned here.

All cells of a study start from the same words (`START`), so that no recipe is given an answer that another is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from mcpl.config import Recipe
from mcpl.errors import ConfigError
from mcpl.learning.settings import AttentionMask
from mcpl.recipes import (
    ablated,
    adjust,
    best,
    break_a_scene,
    combined,
    masked_inversion,
    one_word,
    paper,
    paper_all,
    plain,
    plain_all,
)
from mcpl.scenes import benchmark
from mcpl.scenes.telling import KINDS, TELLINGS
from mcpl.scenes.world import shapes
from mcpl.settings import Settings

Level = bool | int | float | str

START: Mapping[str, Any] = {"initializer": ",".join(shapes("named")), "initializer_length": "words"}
"""What every word starts from: the mean of the named shapes' words, for named and unnamed shapes alike; on another base
or other pictures than Scenes-MC, that base's neutral words"""
SCORES = ("assignment", "attention_iou", "right_object", "right_object_second_judge", "fixed_noise_loss")
SIMILARITIES = ("prompt_fidelity", "image_fidelity")
"""to the ground truth of the paper: the same pictures learned by `masked-inversion`"""
TRUTH = "ground truth"
"""name of the cell that is this"""


class Cell(Settings):
    """One point of a study's grid."""

    name: str
    recipe: Recipe
    set: str = "unnamed-2"
    told: str | None = Field(None, description="one of TELLINGS; None: as the set tells it")
    only: str | None = Field(None, description="one of KINDS of scenes, the others are left out; None: all")
    against: str | None = Field(None, description="the cell that it is compared with")
    levels: dict[str, Level] = Field({}, description="where it lies in the grid")


class Figure(Settings):
    """A picture of a study: `dots`, a line for each cell; `curves`, scores over level `x`, a curve for each `by`."""

    kind: Literal["dots", "curves", "masks"] = "dots"
    x: str = ""
    by: str = ""
    log: bool = False
    of: dict[str, Level] = Field({}, description="only cells with these levels")


class Study(Settings):
    """A grid with its size: what is learned, and what is told of it."""

    kind: ClassVar[str] = "study"

    name: str
    question: str
    cells: tuple[Cell, ...] = Field(min_length=1)
    pairs: tuple[tuple[str, str], ...] = Field((), description="(cell, cell): further differences, first minus second")
    metrics: tuple[str, ...] = SCORES
    figures: tuple[Figure, ...] = (Figure(),)
    sections: tuple[str, ...] = Field((), description="further parts of the report, by name")
    measures: tuple[str, ...] = Field((), description="what is kept of each word beside its scores, by name")
    notes: tuple[str, ...] = Field((), description="what the figures must be read with")
    split: Literal["dev", "test"] = "dev"
    steps: int | None = Field(None, ge=0, description="of every recipe, instead of its own")
    dataset: str | None = Field(None, description="learned instead of the sets: pictures with masks")
    pictures: int | None = Field(None, ge=1, description="of each set; None: all")
    seeds: int = Field(5, ge=1, description="times that each picture is learned in a cell")
    samples: int = Field(4, ge=0, description="pictures drawn of each word")
    pack: int = Field(6, ge=1, description="pictures that share a U-Net batch, and are kept together")

    @model_validator(mode="after")
    def _known(self) -> Study:
        names = [cell.name for cell in self.cells]
        if len(set(names)) < len(names):
            raise ValueError("two cells of one name")
        for cell in self.cells:
            benchmark.find(cell.set)
            if cell.told not in (None, *TELLINGS) or cell.only not in (None, *KINDS):
                raise ValueError(f"cell {cell.name}: no telling {cell.told!r}, or no kind of scenes {cell.only!r}")
            if cell.against is not None and cell.against not in names:
                raise ValueError(f"cell {cell.name} is compared with {cell.against!r}, which is no cell")
        if strangers := {name for pair in self.pairs for name in pair} - set(names):
            raise ValueError(f"pairs name what is no cell: {', '.join(sorted(strangers))}")
        if any(first == second for first, second in self.compared) or len({*self.compared}) < len(self.compared):
            raise ValueError("a cell is compared with itself, or twice with another")
        return self

    @property
    def compared(self) -> list[tuple[str, str]]:
        """(cell, the cell that it is compared with), those of `against` first."""
        return [*((cell.name, cell.against) for cell in self.cells if cell.against), *self.pairs]

    def cell(self, name: str) -> Cell:
        return next(cell for cell in self.cells if cell.name == name)

    @property
    def works(self) -> tuple[tuple[Cell, ...], ...]:
        """What is to be learned: cells that come to the same, under several names, are learned once."""
        works: dict[tuple, list[Cell]] = {}
        for cell in self.cells:
            key = (cell.recipe.fingerprint, cell.recipe.base, cell.recipe.revision, cell.set, cell.told, cell.only)
            works.setdefault(key, []).append(cell)
        return tuple(map(tuple, works.values()))

    @property
    def work_of(self) -> dict[str, int]:
        """Cell -> number of its work: cells of one number are one recipe."""
        return {cell.name: number for number, cells in enumerate(self.works) for cell in cells}

    @property
    def sets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.set for cell in self.cells))


class Size(Settings):
    """How much is learned of each cell; None leaves it to the study or its recipes."""

    pictures: int | None = None
    seeds: int | None = None
    steps: int | None = None
    samples: int | None = None
    pack: int | None = None


QUICK, FULL = Size(pictures=2, seeds=1, steps=10, samples=1), Size()
"""QUICK only shows that a study runs."""


def build(
    name: str, size: Size = FULL, split: str = "dev", base: str | None = None, dataset: str | None = None
) -> Study:
    """A study of `STUDIES` in a size. Raises ConfigError for an unknown name, or a dataset that cannot be asked it."""
    if name not in STUDIES:
        raise ConfigError(f"no study is called {name!r}: there are {', '.join(STUDIES)}")
    study = STUDIES[name]()
    if dataset and (len(study.sets) > 1 or any(cell.told or cell.only for cell in study.cells)):
        raise ConfigError(f"study {name} compares sets or sentences of Scenes-MC: --dataset cannot be asked that")
    elsewhere = bool(dataset) or base not in (None, study.cells[0].recipe.base)
    if elsewhere and len({cell.recipe.initializer for cell in study.cells}) > 1:
        raise ConfigError(f"study {name} compares words of the shipped base: leave out --base and --dataset")
    start = "neutral" if elsewhere else None
    cells = [
        cell.model_copy(update={"recipe": adjust(cell.recipe, steps=size.steps, base=base, initializer=start)})
        for cell in study.cells
    ]
    changes = {key: value for key, value in size.model_dump().items() if value is not None}
    changes |= {"cells": tuple(cells), "split": split, "dataset": dataset, "name": name}
    return Study(**{key: getattr(study, key) for key in Study.model_fields} | changes)


def _from(recipe: Recipe, **changes: object) -> Recipe:
    return adjust(recipe, **{**START, **changes})


def _without(recipe: Recipe, name: str) -> Recipe:
    """The recipe without a term of its objective."""
    return adjust(recipe, terms={term: kept for term, kept in recipe.terms.items() if term != name})


def _term(recipe: Recipe, name: str, **changes: object) -> Recipe:
    """The recipe with other settings of a term of its objective; a weight of 0 leaves it out."""
    if changes.get("weight") == 0:
        return _without(recipe, name)
    return adjust(recipe, terms={**recipe.terms, name: recipe.terms[name].model_copy(update=changes)})


def first_three() -> Study:
    steps = {
        "no regulariser": ablated(mask=False, contrastive=False),
        "AttnMask": ablated(contrastive=False),
        "+ PromptCL": ablated(bind=False),
        "+ Bind adj": paper(),
    }
    names = list(steps)
    cells = [
        Cell(name=name, recipe=_from(steps[name]), against=before)
        for name, before in zip(names, [None, *names], strict=False)
    ]
    return Study(
        name="first-three",
        question="What does each regulariser bring, one added after the other, on a picture of two objects?",
        cells=(*cells, Cell(name=TRUTH, recipe=_from(masked_inversion()))),
        metrics=("prompt_fidelity", *SCORES),
        figures=(Figure(), Figure(kind="masks")),
        measures=("states", "maps"),
        notes=(
            "Each cell is compared with the one before it; all have the rate of `paper`, chosen for a masked loss.",
            "prompt_fidelity: cosine of a word's text-encoder output to that of the ground truth, the same picture "
            "learned by masked Textual Inversion; mean over pairs of unequal seeds. It stands where the paper "
            "measures in BERT's space.",
        ),
    )


def adjectives() -> Study:
    told = {"right": "right", "wrong": "wrong", "swapped": "swapped", "none": "none", "learned": "right"}
    cells = [
        Cell(
            name=name,
            recipe=_from(paper(), words="adjectives" if name == "learned" else "marked"),
            told=telling,
            only="many-coloured",
            against=None if name == "right" else "right",
        )
        for name, telling in told.items()
    ]
    return Study(
        name="adjectives",
        question="What becomes of words whose bound adjectives are wrong, exchanged, missing or learned?",
        cells=tuple(cells),
        figures=(Figure(), Figure(kind="masks")),
        measures=("maps",),
        notes=(
            "Only pictures whose objects have different colours, so that exchanged adjectives are wrong ones.",
            "right_object asks a word for its object's colour unless an ordinary adjective beside it names that "
            "colour: in all cells but `right` the word has to hold it too, so compare those among themselves.",
        ),
    )


def ablation() -> Study:
    cells = []
    for lr, (mask, contrastive, bind) in product((paper().lr, plain().lr), product((False, True), repeat=3)):
        on = [word for word, kept in (("mask", mask), ("CL", contrastive), ("bind", bind)) if kept]
        cells.append(
            Cell(
                name=f"{' + '.join(on) or 'nothing'} at {lr:g}",
                recipe=_from(ablated(mask, contrastive, bind, lr)),
                against=f"nothing at {lr:g}" if on else None,
                levels={"mask": mask, "CL": contrastive, "bind": bind, "rate": lr},
            )
        )
    return Study(
        name="ablation",
        question="What is each regulariser worth alone and with the others, and do they add up?",
        cells=tuple(cells),
        sections=("effects",),
        notes=(
            "At two rates: that of `paper`, chosen for a loss that a mask cuts, and that of `plain`.",
            "Bind adj lives inside PromptCL (an adjective joins its noun's positives), so without PromptCL it changes "
            "nothing: such a pair of cells is one recipe and is learned once.",
            "As released, temperature and weight of PromptCL are .3 and 7.5e-4 with the mask, .2 and 5e-4 without. "
            "With the mask the loss is divided by the mask's area, about a sixth here, and not by the picture's as in "
            "the paper: against the loss PromptCL then weighs a sixth of what it does in the release. Study `weights` "
            "asks both.",
        ),
    )


PARTS_ON = {"unnamed-2": "", "unnamed-2-bare": ", no adjectives"}
"""set that `parts` asks -> what the names of its cells say of it"""


def parts() -> Study:
    whole = combined()
    kept = ("vectors_per_word", "fixed_norm", "lr", "lr_decay", "steps")
    recipes = {
        "combined": whole,
        "one vector": adjust(whole, vectors_per_word=1),
        "free norm": adjust(whole, fixed_norm=False),
        "constant rate": adjust(whole, lr_decay=0.0),
        "no attention loss": _without(whole, "attention"),
        "attention loss of weight 1": _term(whole, "attention", weight=1.0),
        "no PromptCL": _without(whole, "contrastive"),
        "no regulariser": adjust(plain(), **{name: getattr(whole, name) for name in kept}),
    }
    return Study(
        name="parts",
        question="What does `combined` lose without its parts, with adjectives and without?",
        cells=tuple(
            Cell(
                name=f"{name}{said}",
                recipe=_from(recipe),
                set=set,
                against=None if name == "combined" else f"combined{said}",
                levels={"part": name, "set": set},
            )
            for (set, said), (name, recipe) in product(PARTS_ON.items(), recipes.items())
        ),
        notes=(
            "no regulariser: vectors, norm and rate of `combined`, learned by the denoising loss alone.",
            "Without adjectives nothing but the word itself, and its side in the sentence, says where its object is.",
            "Not asked: the initialiser, which is one for all cells; a mask on the loss, which `masked-loss` asks.",
        ),
    )


def masked_loss() -> Study:
    tempered, fast = (f"at {lr:g}" for lr in (paper().lr, plain().lr))
    recipes = {
        tempered: (ablated(False, False, False, paper().lr), AttentionMask()),
        fast: (ablated(False, False, False, plain().lr), AttentionMask()),
        "combined": (combined(), combined().attention_mask.model_copy(update={"on_loss": True})),
    }
    ways = {"whole picture": None, "own masks": {}, "true masks": {"source": "given"}}
    seen = [
        *((name, *way) for name in recipes for way in ways.items()),
        *((name, f"own masks, {share:g} outside", {"outside": share})
          for name, share in ((fast, 0.3), (fast, 0.5), ("combined", 0.5))),
        ("combined", "whole picture, attention to true masks", {"source": "given", "on_loss": False}),
    ]  # fmt: skip
    cells = []
    for name, what, changes in seen:
        whole, own = recipes[name]
        masked = whole if changes is None else adjust(whole, attention_mask=own.model_copy(update=changes))
        cells.append(
            Cell(
                name=f"{name}, {what}",
                recipe=_from(masked),
                against=None if what == "whole picture" else f"{name}, whole picture",
                levels={"recipe": name, "loss": what},
            )
        )
    return Study(
        name="masked-loss",
        question="Does a masked loss explain the objects better where it explains the picture worse, and would true "
        "masks mend it?",
        cells=tuple(cells),
        metrics=("object_loss", "ground_loss", *SCORES),
        measures=("loss by place",),
        notes=(
            "object loss, ground loss: the loss on fixed noise inside the true masks of both objects, together, and "
            "outside of them.",
            "true masks: the dataset's instead of those cut from the words' own maps, in `combined` for its attention "
            "loss too, which has the words' own masks elsewhere. A ceiling: nobody has them where a recipe is used.",
            "outside: by how much the mask lets prediction and target through outside of the objects; their error "
            "counts by its square.",
            "At the two rates without PromptCL and Bind adj.",
        ),
    )


STARTS = {"shapes' mean": START["initializer"], "neutral": "neutral", "adjectives": "adjective"}
"""name -> initializer"""


def starts() -> Study:
    recipes = {"plain": plain(), "paper": paper(), "best": best()}
    cells = [
        Cell(
            name=f"{name} from {start}",
            recipe=_from(recipe, initializer=words),
            against=None if words == START["initializer"] else f"{name} from shapes' mean",
            levels={"recipe": name, "start": start},
        )
        for (name, recipe), (start, words) in product(recipes.items(), STARTS.items())
    ]
    return Study(
        name="starts",
        question="How much does it matter which words a new word starts from?",
        cells=tuple(cells),
        notes=(
            "shapes' mean: of the named shapes' words, where every other study starts; neutral: the base's own neutral "
            "words, `thing` for the shipped one; adjectives: those bound to the word. All as long as such a word is.",
            "Starts differ before learning too: read each against its own mean before learning.",
        ),
    )


def overlap() -> Study:
    recipes = {
        ("union", True): paper(),
        ("union", False): ablated(contrastive=False),
        ("per word", True): adjust(paper(), union_sampling=2),
        ("per word", False): adjust(ablated(contrastive=False), union_sampling=2),
    }
    cells = []
    for share in benchmark.OCCLUSIONS:
        for (mask, contrastive), recipe in recipes.items():
            hidden = round(100 * share)
            name = f"{hidden}% {mask}{' + CL' if contrastive else ''}"
            reference = f"{hidden}% union + CL"
            cells.append(
                Cell(
                    name=name,
                    recipe=_from(recipe),
                    set=f"occluded-{hidden}",
                    against=None if name == reference else reference,
                    levels={"hidden": share, "mask": f"{mask} mask", "CL": contrastive,
                            "recipe": f"{mask} mask, {'with' if contrastive else 'without'} PromptCL"},
                )
            )  # fmt: skip
    return Study(
        name="overlap",
        question="How do words hold out where one object hides another, with one united mask and one for each word?",
        cells=tuple(cells),
        metrics=("assignment", "attention_iou", "attention_iou_best_permutation", "right_object", "fixed_noise_loss"),
        figures=(Figure(kind="curves", x="hidden", by="recipe"),),
        notes=(
            "Per word: rows also show a random one of the objects, named alone and masked by its own mask alone "
            "(union sampling); else the loss of every row is masked by the union of all words' masks.",
            "The sets show the same objects, told by the same sentences, at four overlaps. Each cell is compared with "
            "the union mask and PromptCL at its own overlap.",
        ),
    )


def generalisation() -> Study:
    sets = {
        "named-2": "seen",
        "unseen-2": "unseen combination",
        "unnamed-2": "new nouns",
        "tissue-2": "another domain",
    }
    recipes = {"plain": plain(), "paper": paper(), "best": best()}
    cells = [
        Cell(
            name=f"{set}, {name}",
            recipe=_from(recipe),
            set=set,
            against=None if name == "plain" else f"{set}, plain",
            levels={"set": f"{set}: {what}", "recipe": name},
        )
        for (set, what), (name, recipe) in product(sets.items(), recipes.items())
    ]
    return Study(
        name="generalisation",
        question="Do words hold outside of what the base was trained on, and in other sentences than their own?",
        cells=tuple(cells),
        metrics=(*SCORES, "composition", "beside_known", "one_twice", "one_more"),
        measures=("new sentences",),
        notes=(
            "Each recipe is compared with `plain` on the same set; sets show other pictures, so between sets only the "
            "intervals can be compared. Tissue has no judge.",
            "composition: both words in a new sentence, turned by a right angle, colours drawn anew; beside_known: the "
            "first word beside a shape that the base knows; one_twice: the second word twice; one_more: both words and "
            "a known shape. Share of pictures that show exactly what is asked for, by the trained judge; three objects "
            "are more than the base draws well (docs/results/ceilings.md).",
        ),
    )


LEARNED_WORDS = ("marked", "all:1", "all:2", "all:3", "all:5", "all")


def prompts() -> Study:
    words = [
        Cell(
            name=f"words {value}",
            recipe=_from(paper(), words=value),
            against=None if value == "marked" else "words marked",
            levels={"part": "words", "learned": place},
        )
        for place, value in enumerate(LEARNED_WORDS)
    ]
    concepts = [
        Cell(
            name=f"{n} concepts, {name}",
            recipe=_from(recipe),
            set=f"named-{n}",
            against=None if name == "paper" else f"{n} concepts, paper",
            levels={"part": "concepts", "concepts": n, "recipe": name},
        )
        for n, (name, recipe) in product((2, 3, 4, 5), {"plain": plain(), "paper": paper(), "best": best()}.items())
    ]
    return Study(
        name="prompts",
        question="How many words may be learned at once, of one sentence and of one picture?",
        cells=(*words, *concepts),
        figures=(
            Figure(kind="dots", of={"part": "words"}),
            Figure(kind="curves", x="concepts", by="recipe", of={"part": "concepts"}),
        ),
        notes=(
            "all:n learns the two marked words and n more, adjectives first; all: every word but articles.",
            "The base itself hardly draws three and more objects right (docs/results/ceilings.md): with more than two "
            "concepts read assignment and attention.",
            "right_object asks a word for its object's colour once its adjective is learned and so no ordinary word.",
        ),
    )


def _curve(
    name: str,
    question: str,
    grid: Iterable[tuple[str, Level, Recipe]],
    x: str,
    notes: tuple[str, ...],
    *,
    log: bool,
    standard: Mapping[str, Level],
) -> Study:
    """A study of one setting: (curve, value, recipe) each; `standard`: each curve's own value, its reference."""
    cells = [
        Cell(
            name=f"{curve}, {x} {value:g}",
            recipe=_from(recipe),
            against=None if value == standard[curve] else f"{curve}, {x} {standard[curve]:g}",
            levels={"recipe": curve, x: value},
        )
        for curve, value, recipe in grid
    ]
    return Study(
        name=name,
        question=question,
        cells=tuple(cells),
        figures=(Figure(kind="curves", x=x, by="recipe", log=log),),
        notes=(*notes, "Each cell is compared with the setting's own value in its recipe: "
               + ", ".join(f"{value:g} in {curve}" for curve, value in standard.items()) + "."),
    )  # fmt: skip


def temperature() -> Study:
    values = (0.03, 0.1, 0.3, 1.0, 3.0)
    weights = {"gamma 7.5e-4": 7.5e-4, "gamma 0.075": 0.075}
    grid = [
        (name, tau, _term(paper(), "contrastive", temperature=tau, weight=gamma))
        for (name, gamma), tau in product(weights.items(), values)
    ]
    return _curve(
        "temperature", "How much does PromptCL's temperature matter, at its released weight and at a hundred times it?",
        grid, "temperature", (), log=True, standard=dict.fromkeys(weights, 0.3),
    )  # fmt: skip


def threshold() -> Study:
    values = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    recipes = {"paper": paper(), "combined": combined()}
    own = {name: recipe.attention_mask.threshold for name, recipe in recipes.items()}
    grid = [
        (name, k, adjust(recipe, attention_mask=recipe.attention_mask.model_copy(update={"threshold": k})))
        for name, recipe in recipes.items()
        for k in sorted({*values, own[name]})
    ]
    return _curve(
        "threshold", "At which share of a map's maximum should AttnMask cut?", grid, "threshold",
        ("In `paper` the mask cuts the loss; in `combined` it says where attention is drawn, and the loss sees the "
         "whole picture.",
         "attention_iou and assignment are measured with maps cut at half of their maximum, whatever the recipe's own "
         "threshold."),
        log=False, standard=own,
    )  # fmt: skip


def weights() -> Study:
    gammas, pulls = (0.0, 7.5e-5, 7.5e-4, 7.5e-3, 0.075, 0.75), (0.0, 1e-3, 1e-2, 0.1, 1.0)
    varied: dict[str, tuple[Recipe, str, tuple[float, ...]]] = {
        "PromptCL in paper": (paper(), "contrastive", gammas),
        "PromptCL in paper, raw mean": (_term(paper(), "denoising", area_normalised=False), "contrastive", gammas),
        "PromptCL in combined": (combined(), "contrastive", gammas),
        "attention loss in combined": (combined(), "attention", pulls),
    }
    own = {name: recipe.terms[term].weight for name, (recipe, term, _) in varied.items()}
    grid = [
        (name, weight, _term(recipe, term, weight=weight))
        for name, (recipe, term, tried) in varied.items()
        for weight in sorted({*tried, own[name]})
    ]
    return _curve(
        "weights", "How much do the weights of the contrastive and of the attention loss matter?", grid, "weight",
        ("A weight of 0 is drawn at the left edge.",
         "raw mean: the masked loss is divided by the picture's area, as the paper has it, and not by the mask's. Adam "
         "does not see a loss's scale, so this raises PromptCL's weight against it by one over the mask's share."),
        log=True,
        standard=own,
    )  # fmt: skip


PAPER_ROWS = {
    "all (naive)": (0.235, 0.311, 0.743, 0.984, 0.241, 0.349, 0.787, 0.977),
    "one": (0.236, 0.388, 0.760, 0.978, 0.251, 0.329, 0.776, 0.982),
    "all+CL": (0.247, 0.347, 0.756, 0.983, 0.252, 0.339, 0.785, 0.982),
    "all+CL+Mask": (0.252, 0.363, 0.756, 0.983, 0.264, 0.353, 0.785, 0.982),
    "one+CL": (0.264, 0.468, 0.792, 0.986, 0.247, 0.376, 0.791, 0.981),
    "one+CL+Mask": (0.272, 0.535, 0.822, 0.992, 0.263, 0.407, 0.792, 0.983),
    "Break-A-Scene": (0.277, 0.552, 0.823, 0.995, 0.267, 0.560, 0.823, 0.988),
}
"""The paper's figures, read from its bar charts (+- .002)"""
PAPER_COLUMNS = ("BERT", "DINOv1", "CLIP", "DINOv2")
"""of natural pictures, and then the same of medical ones; BERT is prompt fidelity, the others image fidelity"""


def baselines() -> Study:
    recipes = {
        "all (naive)": plain_all(),
        "one": plain(),
        "all+CL": adjust(ablated(mask=False, lr=plain().lr), words="all"),
        "all+CL+Mask": paper_all(),
        "one+CL": ablated(mask=False, lr=plain().lr),
        "one+CL+Mask": paper(),
        "Break-A-Scene": break_a_scene(),
        "one word at a time": one_word(),
        "best (ours)": best(),
        TRUTH: masked_inversion(),
    }
    domains = {"unnamed-2": "natural", "tissue-2": "medical"}
    cells = [
        Cell(
            name=f"{name}, {domain}",
            recipe=_from(recipe),
            set=set,
            against=None if name in (TRUTH, "all (naive)") else f"all (naive), {domain}",
            levels={"row": name, "domain": domain},
        )
        for (set, domain), (name, recipe) in product(domains.items(), recipes.items())
    ]
    return Study(
        name="baselines",
        question="Does the order of the paper's table come back on Scenes-MC?",
        cells=tuple(cells),
        pairs=tuple(
            (f"{first}, {domain}", f"{second}, {domain}")
            for domain in domains.values()
            for first, second in (
                ("one", "one word at a time"),
                ("best (ours)", "one word at a time"),
                ("best (ours)", "one"),
                ("one+CL+Mask", "one+CL"),
            )
        ),
        metrics=(*SIMILARITIES, *SCORES),
        sections=("paper",),
        measures=("states",),
        notes=(
            "Rows without a mask have the rate of `plain`, those of AttnMask that of `paper`, chosen for their kind. "
            "That of Break-A-Scene, with given masks, was not searched.",
            "Ground truth: masked Textual Inversion of each object. prompt_fidelity: cosine to it in the text "
            "encoder's space; image_fidelity: cosine of pictures drawn from the word alone to pictures drawn from "
            "it, in the feature space of the scene judge, which stands where the paper has DINO and CLIP and is none "
            "of them. Means over all words and pairs of unequal seeds, which share no noise.",
            "Noise ceiling: the ground truth against itself learned with other seeds.",
            "Natural: unnamed-2, two new nouns; medical: tissue-2, which no judge reads.",
        ),
    )


STUDIES: dict[str, Callable[[], Study]] = {
    "first-three": first_three,
    "adjectives": adjectives,
    "ablation": ablation,
    "parts": parts,
    "masked-loss": masked_loss,
    "starts": starts,
    "overlap": overlap,
    "generalisation": generalisation,
    "prompts": prompts,
    "temperature": temperature,
    "threshold": threshold,
    "weights": weights,
    "baselines": baselines,
}
