"""A stock CLIP tokenizer in which every word of the world is one token, and any other text still has tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 40


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes that CLIP's byte-level BPE writes its pieces in, in byte order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    shifted = iter(range(256, 512))
    return [chr(byte if byte in printable else next(shifted)) for byte in range(256)]


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges run to exhaustion: the commonest pair first, until each word is one piece."""
    pieces = [(*word[:-1], word[-1] + "</w>") for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in pieces for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [_merge(word, best) for word in pieces]
    return merges


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return tuple(merged)


def build_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """The tokenizer over `words`; it pads with the end token, as Stable Diffusion 1 does, which has the last id."""
    merges = learn_merges(words)
    alphabet = byte_alphabet()
    # pieces that two ways of merging reach are listed once
    pieces = dict.fromkeys([*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in merges), BOS, EOS])
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=merges,
        unk_token=EOS,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=MAX_TOKENS,
    )
