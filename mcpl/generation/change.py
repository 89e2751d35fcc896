"""What an edit asks for: two sentences, which words hand their attention on to which, and where the change may show.

    replaced("a red <heart> left of a <moon>", {"<heart>": "star"})
    refined("a <heart>", "a striped <heart>")

Pure: knows sentences and a vocabulary, no model. After Prompt-to-Prompt (arXiv 2208.01626), word by word: a word is
as many tokens as it has pieces, or learned vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher

import torch
from torch import Tensor

from mcpl.errors import ConfigError
from mcpl.prompts import Vocabulary, is_content, said, word_positions
from mcpl.types import Sentence, Word

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""words of the first sentence -> words of the second that take over their attention"""


@dataclass(frozen=True)
class Change:
    """From one sentence to another."""

    before: Sentence
    after: Sentence
    pairs: tuple[Pair, ...]
    """a word of the second sentence that is in none looks where it likes"""
    changed: tuple[tuple[int, ...], tuple[int, ...]]
    """words of the first and of the second sentence that name what changes: the change may show where they look"""
    weights: Mapping[int, float] = field(default_factory=dict)
    """word of the second sentence -> factor of the attention that is paid to it"""


def asked(
    text: str,
    replacements: Mapping[str, str] | None = None,
    refined_text: str | None = None,
    weights: Mapping[str, float] | None = None,
    shown: Sequence[str] = (),
) -> Change:
    """What a person asks for: words replaced, or the sentence refined, or neither; and words weighed; shown where.

    Raises ConfigError where nothing changes, or two things that exclude each other.
    """
    if not (replacements or refined_text or weights) or (replacements and refined_text):
        raise ConfigError(
            "say what changes: replace words (--replace A=B) or refine the sentence (--refine SENTENCE), "
            "and weigh words (--weight WORD=NUMBER)"
        )
    change = replaced(text, replacements) if replacements else refined(text, refined_text or text)
    change = weighted(change, weights) if weights else change
    return shown_by(change, shown) if shown else change


def replaced(text: str, replacements: Mapping[str, str]) -> Change:
    """Words of a sentence exchanged, each wherever it stands; the new ones look where the old ones looked."""
    before = said(text)
    olds = {tuple(_texts(said(old))): [w.text for w in said(new).words] for old, new in replacements.items()}
    words, texts, pairs, changed, found = _texts(before), [], [], ([], []), set()
    at = 0
    while at < len(words):
        old = next((old for old in olds if tuple(words[at : at + len(old)]) == old), None)
        taken = old or (words[at],)
        new = olds[old] if old else [before.words[at].text]
        pair = tuple(range(at, at + len(taken))), tuple(range(len(texts), len(texts) + len(new)))
        pairs.append(pair)
        if old:
            found.add(old)
            for side, own in zip(changed, pair, strict=True):
                side.extend(own)
        texts += new
        at += len(taken)
    for old in olds:
        if old not in found:
            raise ConfigError(f"nothing to replace: {' '.join(old)!r} does not stand in {text!r}")
    after = said(" ".join(texts))
    return Change(before, after, tuple(pairs), _heads(before, after, changed))


def refined(text: str, new_text: str) -> Change:
    """A sentence told with more words, or fewer: what stands in both looks where it looked."""
    before, after = said(text), said(new_text)
    pairs, changed = [], ([], [])
    for kind, a, b, c, d in SequenceMatcher(None, _texts(before), _texts(after), autojunk=False).get_opcodes():
        if kind == "equal":
            pairs += [((i,), (j,)) for i, j in zip(range(a, b), range(c, d), strict=True)]
        else:
            changed[0].extend(range(a, b))
            changed[1].extend(range(c, d))
    return Change(before, after, tuple(pairs), _heads(before, after, changed))


def weighted(change: Change, weights: Mapping[str, float]) -> Change:
    """The same with more, or less, attention paid to words of its second sentence."""
    texts = _texts(change.after)
    for word in weights:
        if word.lower() not in texts:
            raise ConfigError(f"nothing to weigh: {word!r} does not stand in {change.after.text!r}")
    own = {i: weights[word] for i, text in enumerate(texts) for word in weights if text == word.lower()}
    before = [i for first, second in change.pairs for i in first if set(second) & set(own)]
    heads = _heads(change.before, change.after, (before, list(own)))
    both = tuple(tuple(dict.fromkeys(a + b)) for a, b in zip(change.changed, heads, strict=True))
    return replace(change, weights={**change.weights, **own}, changed=both)


def shown_by(change: Change, words: Sequence[str]) -> Change:
    """The same, but the change may show where these words look."""
    wanted = {word.lower() for word in words}
    both = tuple(
        tuple(i for i, text in enumerate(_texts(sentence)) if text in wanted)
        for sentence in (change.before, change.after)
    )
    if not any(both):
        raise ConfigError(f"none of {', '.join(words)} stands in {change.before.text!r} or {change.after.text!r}")
    return replace(change, changed=both)


def heads(sentence: Sentence) -> tuple[int, ...]:
    """The words that name things: placeholders, and the last of each run of content words."""
    return tuple(dict.fromkeys(filter(lambda i: i is not None, (_head(sentence.words, i) for i in _content(sentence)))))


def _content(sentence: Sentence) -> list[int]:
    return [i for i, word in enumerate(sentence.words) if _names(word)]


def _names(word: Word) -> bool:
    return word.role == "placeholder" or is_content(word.text)


def _head(words: Sequence[Word], at: int) -> int | None:
    """The word that names what word `at` is said of: itself where it is a placeholder; None behind no content."""
    if not _names(words[at]):
        return None
    while words[at].role != "placeholder" and at + 1 < len(words) and _names(words[at + 1]):
        at += 1
    return at


def _heads(before: Sentence, after: Sentence, changed: tuple[Sequence[int], Sequence[int]]):
    found = (
        [_head(sentence.words, i) for i in own] for sentence, own in zip((before, after), changed, strict=True)
    )  # fmt: skip
    return tuple(tuple(dict.fromkeys(i for i in own if i is not None)) for own in found)


def _texts(sentence: Sentence) -> list[str]:
    return [word.text.lower() for word in sentence.words]


@dataclass(frozen=True)
class Mapped:
    """A change in tokens; L of a prompt."""

    take: Tensor
    """[L, L] share of a token of the first sentence that a token of the second takes over"""
    taken: Tensor
    """[L] 1 where a token of the second sentence takes over, 0 where it looks for itself"""
    weights: Tensor
    """[L] factor of the attention that is paid to a token of the second sentence"""


def mapped(change: Change, vocabulary: Vocabulary, lengths: Mapping[str, int]) -> Mapped:
    """The change as Prompt-to-Prompt applies it; lengths: slug -> vectors of the word.

    Start stays start. The end and all that pads behind it hold much of a sentence; they are paired in their order.
    """
    spots = [
        word_positions(sentence, vocabulary, [lengths[c.slug] for c in sentence.concepts])
        for sentence in (change.before, change.after)
    ]
    length = vocabulary.length
    take, taken, weights = torch.zeros(length, length), torch.zeros(length), torch.ones(length)
    take[0, 0] = taken[0] = 1
    for first, second in change.pairs:
        sources, targets = ([p for i in own for p in side[i]] for own, side in zip((first, second), spots, strict=True))
        if len(sources) == len(targets):
            take[sources, targets] = 1
        else:
            take[torch.tensor(sources)[:, None], torch.tensor(targets)] = 1 / len(targets)
        taken[targets] = 1
    ends = [side[-1].stop for side in spots]
    for source, target in zip(range(ends[0], length), range(ends[1], length), strict=False):
        take[source, target] = taken[target] = 1
    taken[(take.sum(dim=0) == 0)] = 0
    for word, weight in change.weights.items():
        weights[list(spots[1][word])] = weight
    return Mapped(take, taken, weights)
