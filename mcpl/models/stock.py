"""Learned words in stock diffusers pipelines, for those who leave mcpl behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from mcpl.errors import ConfigError


def load_words(pipeline, files: Sequence[str | Path]) -> list[str]:
    """Load files that `mcpl concepts` wrote into a Stable Diffusion 1, 2 or XL pipeline; returns the words.

    SD XL needs one call of `load_textual_inversion` per text encoder. It also needs to be told where a sentence ends:
    older checkpoints have `eos_token_id: 2` in their configuration, transformers then takes the largest token id for
    the end, and that is the newest learned word.
    """
    words = []
    for path in files:
        with safe_open(path, "pt") as file:
            word = (file.metadata() or {}).get("modelspec.trigger_phrase")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if not word:
            raise ConfigError(f"{path} does not name its word: bring it into our layout with `mcpl concepts import`")
        words.append(word)
        if set(tensors) == {"clip_l", "clip_g"}:
            _check_two_encoders(pipeline, path)
            second = {"text_encoder": pipeline.text_encoder_2, "tokenizer": pipeline.tokenizer_2}
            pipeline.load_textual_inversion({word: tensors["clip_l"]}, token=word)
            pipeline.load_textual_inversion({word: tensors["clip_g"]}, token=word, **second)
            pipeline.text_encoder_2.text_model.eos_token_id = pipeline.tokenizer_2.eos_token_id
        else:
            pipeline.load_textual_inversion(tensors, token=word)
    return words


def _check_two_encoders(pipeline, path: str | Path) -> None:
    if not hasattr(pipeline, "text_encoder_2"):
        raise ConfigError(f"{path} belongs to SD XL, but {type(pipeline).__name__} has one text encoder")
