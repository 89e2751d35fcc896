"""mcpl: learn the objects of a picture as words (Multi-Concept Prompt Learning, arXiv 2310.12274)."""

__version__ = "0.1.0"
