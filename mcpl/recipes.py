"""Named complete recipes, each a function. A recipe is a name here, or a YAML file with the same field names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mcpl.config import Recipe, parse
from mcpl.errors import ConfigError
from mcpl.learning.settings import AttentionMask, ReleaseMask
from mcpl.objectives.objective import Attention, Contrastive, Denoising, ReleaseContrastive
from mcpl.prompts import SLUG_RULE, is_slug

PAPER_RATE = 1e-3
"""Adam's rate where AttnMask cuts the loss: its words sit best with it, and higher ones leave pictures explained worse
than before learning (docs/experiments.md, a hundred steps)"""


def paper() -> Recipe:
    """All three regularisers as we read the paper, at the small base's stated budget."""
    return Recipe(name="paper", lr=PAPER_RATE)


def paper_full() -> Recipe:
    """The same for the paper's number of steps: for real bases."""
    return adjust(paper(), name="paper-full", steps=6100)


def plain() -> Recipe:
    """No regulariser: several placeholders moved by the denoising loss alone (naive multi-word inversion)."""
    return Recipe(name="plain", attention_mask=None, terms={"denoising": Denoising()})


def paper_all() -> Recipe:
    """MCPL-all: every word of the sentence but articles is learned."""
    return adjust(paper(), name="paper-all", words="all")


def plain_all() -> Recipe:
    """MCPL-all without regularisers: the paper's naive variant."""
    return adjust(plain(), name="plain-all", words="all")


def ablated(mask: bool = True, contrastive: bool = True, bind: bool = True, lr: float = PAPER_RATE) -> Recipe:
    """`paper` with some of its three regularisers left out; (tau, gamma) as released, with and without the mask."""
    left_out = [n for n, kept in (("mask", mask), ("contrastive", contrastive), ("bind", bind)) if not kept]
    tau, gamma = (0.3, 7.5e-4) if mask else (0.2, 5e-4)
    terms = {"denoising": Denoising()}
    if contrastive:
        terms["contrastive"] = Contrastive(weight=gamma, temperature=tau, bind_adjectives=bind)
    return Recipe(
        name="-".join(["paper", *(["without", *left_out] if left_out else [])]),
        attention_mask=AttentionMask() if mask else None,
        terms=terms,
        lr=lr,
    )


def release() -> Recipe:
    """The official code's behaviour where it can be reproduced: a record of defects, never a recommendation.

    Not reproduced: squashed portraits, words that match nothing or crash, pickled output, its pairing of adjectives by
    order of appearance, its 84 templates (ours are fewer, of the same kind).
    """
    return Recipe(
        name="release",
        words="adjectives",
        initializer="noun",
        initialize="first",
        attention_mask=ReleaseMask(source="release"),
        terms={
            "denoising": Denoising(area_normalised=False),
            "release-contrastive": ReleaseContrastive(weight=7.5e-4, temperature=0.3),
        },
        lr=2e-2,
        weight_decay=0.01,
        steps=6100,
        flips="always",
        stratified_timesteps=False,
    )


def one_word() -> Recipe:
    """Single-word Textual Inversion: each word by itself on the whole picture."""
    return adjust(plain(), name="one-word", sentences="one-word")


def masked_inversion() -> Recipe:
    """Textual Inversion on each object alone on black: the paper's estimated ground truth. Needs given masks."""
    return adjust(plain(), name="masked-inversion", sentences="objects-on-black")


def break_a_scene() -> Recipe:
    """Masked multi-concept learning with given masks: Break-A-Scene's losses and union sampling, embeddings only."""
    return Recipe(
        name="break-a-scene",
        attention_mask=AttentionMask(source="given"),
        union_sampling=2,
        terms={"denoising": Denoising(area_normalised=False), "attention": Attention(weight=1e-2)},
    )


def combined() -> Recipe:
    """All of our ideas at once, with the same frozen weights: what `best` was cut down from (docs/decisions/0005).

    The loss sees the whole picture; the masks, cut from refined maps of many looks, draw each word's attention to its
    object instead. Vectors, threshold and weights are those of the committed sweep (docs/sweeps.md), to two digits;
    rate and steps those of docs/experiments.md, as many steps as `paper`.
    """
    return Recipe(
        name="combined",
        vectors_per_word=3,
        initializer="noun",
        initializer_length="words",
        fixed_norm=True,
        lr=2e-3,
        steps=100,
        lr_decay=0.3,
        attention_mask=AttentionMask(on_loss=False, threshold=0.48, refine=1, sharp=True, momentum=0.5, exclusive=True),
        terms={
            "denoising": Denoising(),
            "contrastive": Contrastive(weight=6.6e-4, temperature=0.079),
            "attention": Attention(weight=8.3e-3),
        },
    )


def best() -> Recipe:
    """Ours: what is left of `combined` once the parts are gone that are not shown to be of use (docs/decisions/0005).

    Several vectors a word, the whole picture's loss, no regulariser. Found on the small base, so for another one it is
    where to begin.
    """
    return adjust(plain(), name="best", vectors_per_word=3, initializer="noun", initializer_length="words", lr=3e-3)


RECIPES = {
    "paper": paper,
    "paper-full": paper_full,
    "paper-all": paper_all,
    "plain": plain,
    "plain-all": plain_all,
    "paper-without-mask": lambda: ablated(mask=False),
    "paper-without-contrastive": lambda: ablated(contrastive=False),
    "paper-without-bind": lambda: ablated(bind=False),
    "release": release,
    "one-word": one_word,
    "masked-inversion": masked_inversion,
    "break-a-scene": break_a_scene,
    "combined": combined,
    "best": best,
}


def read_table(path: Path, wanted: str) -> dict[str, Any]:
    """The table that a YAML file holds; ConfigError where it is no YAML, or no table, as `wanted` says it is."""
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: {wanted}")
    return values


def load(name_or_file: str) -> Recipe:
    """A recipe by name, or from a YAML file. Raises ConfigError naming the recipes there are, or the wrong field."""
    if name_or_file in RECIPES:
        return RECIPES[name_or_file]()
    path = Path(name_or_file)
    if not path.is_file():
        raise ConfigError(f"recipe {name_or_file!r} is neither a file nor one of {', '.join(RECIPES)}")
    values = read_table(path, "a recipe is a table of settings such as 'steps: 100'")
    return adjust(parse(Recipe, {"name": path.stem, **values}, str(path)))


def adjust(recipe: Recipe, **changes: object) -> Recipe:
    """The recipe with some settings changed (None leaves one alone); `words='list:FILE'` reads the nouns.

    Raises ConfigError naming the wrong setting.
    """
    values = {name: value for name, value in changes.items() if value is not None}
    words = values.get("words", recipe.words)
    if isinstance(words, str) and words.startswith("list:") and Path(words[5:]).is_file():
        values["words"] = "list:" + ",".join(nouns_in(Path(words[5:])))
    return parse(Recipe, recipe.model_dump() | values, "recipe") if values else recipe


def nouns_in(path: Path) -> tuple[str, ...]:
    """The nouns of a text file, one a line; blank lines and those starting with # are left out.

    Raises ConfigError where there is none.
    """
    lines = (line.split("#")[0].strip().lower() for line in path.read_text().splitlines())
    nouns = tuple(dict.fromkeys(line for line in lines if line))
    if not nouns:
        raise ConfigError(f"{path} holds no nouns: write one a line")
    if wrong := [noun for noun in nouns if not is_slug(noun)]:
        raise ConfigError(f"{path}: {wrong[0]!r} cannot be a placeholder: {SLUG_RULE}")
    return nouns
