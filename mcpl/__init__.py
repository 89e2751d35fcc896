"""mcpl: learn the objects of a picture as words (Multi-Concept Prompt Learning, arXiv 2310.12274)."""

from importlib import import_module as _import_module

__version__ = "0.1.0"

_NOTEBOOK = ("learn", "show", "generate", "edit")
"""functions of mcpl.notebook, loaded with torch when one is first asked for"""


def __getattr__(name: str):
    if name in _NOTEBOOK:
        return getattr(_import_module("mcpl.notebook"), name)
    raise AttributeError(f"module 'mcpl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_NOTEBOOK])
