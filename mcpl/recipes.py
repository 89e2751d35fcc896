"""Named complete recipes, each a function. A recipe is a name here, or a YAML file with the same field names."""

from __future__ import annotations

from pathlib import Path

import yaml

from mcpl.config import Recipe, parse
from mcpl.errors import ConfigError
from mcpl.objectives.objective import Denoising
from mcpl.prompts import SLUG_RULE, is_slug


def paper() -> Recipe:
    """All three regularisers as we read the paper, at the small base's stated budget."""
    return Recipe(name="paper")


def plain() -> Recipe:
    """No regulariser: several placeholders moved by the denoising loss alone (naive multi-word inversion)."""
    return Recipe(name="plain", attention_mask=None, terms={"denoising": Denoising()})


def paper_all() -> Recipe:
    """MCPL-all: every word of the sentence but articles is learned."""
    return Recipe(name="paper-all", words="all")


RECIPES = {"paper": paper, "plain": plain, "paper-all": paper_all}


def load(name_or_file: str) -> Recipe:
    """A recipe by name, or from a YAML file. Raises ConfigError naming the recipes there are, or the wrong field."""
    if name_or_file in RECIPES:
        return RECIPES[name_or_file]()
    path = Path(name_or_file)
    if not path.is_file():
        raise ConfigError(f"recipe {name_or_file!r} is neither a file nor one of {', '.join(RECIPES)}")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a table of settings such as 'steps: 200'")
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
