"""The base of every group of settings: frozen, and a wrong name is an error rather than silence."""

from pydantic import BaseModel, ConfigDict

DEFAULT_RECIPE = "best"
"""The recipe (one of mcpl.recipes.RECIPES) that commands learn with where none is named."""


class Settings(BaseModel):
    """A frozen group of settings; it lives next to the code that uses it, and Recipe gathers the groups."""

    model_config = ConfigDict(frozen=True, extra="forbid")
