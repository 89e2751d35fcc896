"""Sentences, templates, placeholder tokens and word roles: which words are learned, bound, or left alone.

    "A brown <bear> on a rolling <board>, at times square"
        placeholders   <bear> <board>            learned
        adjectives     brown -> <bear>, rolling -> <board>   ordinary frozen words, bound by position (Bind adj)
        words          everything else

Pure: knows no model; a `Vocabulary` says how a model spells words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from mcpl.errors import ConfigError, ExampleError
from mcpl.types import Concept, Prompt, Sentence, Word

SLUG = re.compile(r"[a-z][a-z0-9-]*(?:_[a-z0-9-]+)*\Z")
SLUG_RULE = "use lower-case letters, digits and '-', starting with a letter and not ending in '_' and digits"
_LEXEME = re.compile(r"<([^<>\s]*)>|([\w]+(?:['’-][\w]+)*)|([^\w\s])", re.UNICODE)
MAX_ADJECTIVES = 3

FUNCTION_WORDS = frozenset(
    """
    a an the this that these those some any each every no one two three four five six seven eight nine ten
    several many few both all and or but nor with without of on in at by to from for into onto over under
    above below beside besides behind between near next left right top bottom front inside outside around
    through across against along among beneath off up down out is are was were be being been has have had do
    does did it its his her their our my your he she they we i you who which what there here as than then not
    very just only also while when where
    """.split()  # noqa: SIM905
)
"""Closed-class words: never an adjective, never a concept of MCPL-all's mask."""

ARTICLES = frozenset({"a", "an", "the"})

TEMPLATES: tuple[str, ...] = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a rendering of {}",
    "a drawing of {}",
    "a painting of {}",
    "a view of {}",
    "a scene with {}",
    "the photo of {}",
    "the picture of {}",
    "the image of {}",
    "a close photo of {}",
    "a clear photo of {}",
    "a good photo of {}",
    "a nice photo of {}",
    "a clean rendering of {}",
    "a simple drawing of {}",
    "a cropped photo of {}",
    "one photo of {}",
    "this is a photo of {}",
    "this is {}",
    "here is {}",
    "there is {}",
)
"""Captions around the whole sentence (Textual Inversion's habit); the first is the sentence itself."""


class Vocabulary(Protocol):
    """How a base model spells words."""

    start: int
    end: int
    pad: int
    length: int
    """L: tokens of a prompt, start and end included"""

    def pieces(self, word: str) -> tuple[int, ...]:
        """Token ids of one word in the middle of a sentence."""
        ...


def parse(text: str, words: str = "marked") -> Sentence:
    """Read a sentence's roles.

    words: 'marked' learns the `<marked>` words, 'adjectives' also the adjectives bound to them, 'all' every word but
    articles (MCPL-all), 'all:3' the marked and three more (adjectives first, then in reading order), and
    'list:bear,board' these nouns wherever they stand, plural s allowed, besides marked ones.

    A marked word is an object, whose map counts in the mask, unless it is a function word (`<on>`, `<beside:on>`)
    or stands directly before another placeholder that is none (`<brown> <bear>`).

    Raises ExampleError: empty; a mark that is no slug; in all but 'all' and 'list', no placeholder or one twice.
    """
    nouns, grows = listed_nouns(words), words == "adjectives" or words.startswith("all:")
    lexemes = _lexemes(text, nouns)
    marked = [slug for _, slug, _ in lexemes if slug]  # listed nouns too: both name objects
    if words == "marked" or grows:
        if not marked:
            raise ExampleError(f"no placeholder in {text!r}: mark what to learn, as in 'a brown <bear>'")
        for slug in marked:
            if marked.count(slug) > 1:
                raise ExampleError(f"<{slug}> stands twice in {text!r}: give each object its own word")
    objects = _objects(lexemes) or None
    if words == "all":
        lexemes = _learn(lexemes, {word.lower() for word, slug, _ in lexemes if not slug and _learnable(word)})
    elif grows:
        lexemes = _learn(lexemes, _further(_assign_roles(text, lexemes, objects), words))
    return _assign_roles(text, lexemes, objects)


def said(text: str) -> Sentence:
    """Read a sentence that is drawn and not learned: marked words may be none, and one may stand twice."""
    lexemes = _lexemes(text)
    return _assign_roles(text, lexemes, _objects(lexemes) or None)


Lexeme = tuple[str, str | None, str | None]
"""text, slug where it is learned, initializer where one is given"""


def _lexemes(text: str, nouns: Sequence[str] = ()) -> list[Lexeme]:
    if not text.strip():
        raise ExampleError("empty sentence: give one such as 'a brown <bear> on a rolling <board>'")
    lexemes: list[Lexeme] = []
    for mark, word, sign in _LEXEME.findall(text):
        if word or sign:
            noun = _listed(word.lower(), nouns) if word else None
            lexemes.append((word or sign, noun, None))
        else:
            slug, _, initializer = mark.lower().partition(":")
            lexemes.append((f"<{slug}>", _checked(slug, mark), initializer or None))
    return lexemes


def _objects(lexemes: Sequence[Lexeme]) -> frozenset[str]:
    """Slugs of the words that name objects: every listed noun, and the marked words that nothing speaks against."""
    content = [slug is not None and is_content(initializer or slug) for _, slug, initializer in lexemes]
    return frozenset(
        slug
        for (word, slug, _), own, following in zip(lexemes, content, [*content[1:], False], strict=True)
        if slug and (not word.startswith("<") or (own and not following))
    )


def _learn(lexemes: Sequence[Lexeme], chosen: Collection[str]) -> list[Lexeme]:
    """The lexemes with these ordinary words learned too, each from itself."""
    return [
        (word, word.lower(), initializer or word.lower())
        if not slug and word.lower() in chosen
        else (word, slug, initializer)
        for word, slug, initializer in lexemes
    ]


def _further(sentence: Sentence, words: str) -> tuple[str, ...]:
    """What 'adjectives' or 'all:3' adds to the marked words: adjectives first, then the others in reading order."""
    adjectives = [w.text.lower() for w in sentence.words if w.role == "adjective"]
    others = [w.text.lower() for w in sentence.words if w.role == "word"]
    taken = {concept.slug for concept in sentence.concepts}
    names = adjectives if words == "adjectives" else adjectives + others
    free = [name for name in dict.fromkeys(names) if _learnable(name) and name not in taken]
    return tuple(free if words == "adjectives" else free[: int(words[4:])])


def _assign_roles(text: str, lexemes: Sequence[Lexeme], objects: frozenset[str] | None) -> Sentence:
    order: dict[str, int] = {}
    for _, slug, _ in lexemes:
        if slug:
            order.setdefault(slug, len(order))
    words = [Word(word, "placeholder" if slug else "word", order[slug] if slug else None) for word, slug, _ in lexemes]
    for position, word in enumerate(words):
        if word.role == "placeholder":
            for before in range(position - 1, max(-1, position - 1 - MAX_ADJECTIVES), -1):
                if words[before].role != "word" or not is_content(words[before].text):
                    break
                words[before] = Word(words[before].text, "adjective", word.concept)
    concepts = []
    for slug, index in order.items():
        initializer = next((i for _, s, i in lexemes if s == slug and i), None)
        adjectives = tuple(w.text.lower() for w in words if w.role == "adjective" and w.concept == index)
        is_object = (
            slug in objects
            if objects
            else any(
                word.concept == index and is_content(word.text.strip("<>")) and not _describes(words, position)
                for position, word in enumerate(words)
            )
        )
        concepts.append(Concept(slug, initializer, tuple(dict.fromkeys(adjectives)), is_object))
    return Sentence(text, tuple(words), tuple(concepts))


def _describes(words: Sequence[Word], position: int) -> bool:
    """True directly before another content word: "red" in "red ball" (an unmarked sentence of MCPL-all)."""
    after = words[position + 1].text.strip("<>") if position + 1 < len(words) else ""
    return bool(after) and is_content(after)


def is_content(word: str) -> bool:
    """True for an open-class word: not punctuation, not a number, not a function word."""
    return word[0].isalpha() and word.lower() not in FUNCTION_WORDS


def _learnable(word: str) -> bool:
    return word.lower() not in ARTICLES and is_slug(word.lower())


WORDS_RULE = "'marked', 'adjectives', 'all', 'all:' and a number, or 'list:' and at least one noun"


def listed_nouns(words: str) -> tuple[str, ...]:
    """The listed nouns of a `words` setting. Raises ConfigError where it is none."""
    if words in ("marked", "adjectives", "all") or re.fullmatch(r"all:\d+", words):
        return ()
    nouns = tuple(n.strip().lower() for n in words.removeprefix("list:").split(",") if n.strip())
    if not words.startswith("list:") or not nouns:
        raise ConfigError(f"words = {words!r}: must be {WORDS_RULE}")
    if wrong := [noun for noun in nouns if not is_slug(noun)]:
        raise ConfigError(f"{wrong[0]!r} is neither a file that is there nor a noun: {SLUG_RULE}")
    return nouns


def _listed(word: str, nouns: Sequence[str]) -> str | None:
    """The listed noun that a word is, singular or plural; None where it is none."""
    for form in (word, word[:-1] if word.endswith("s") else word, word[:-2] if word.endswith("es") else word):
        if form in nouns:
            return form
    return word + "s" if word + "s" in nouns else None


def _checked(slug: str, mark: str) -> str:
    if not is_slug(slug):
        raise ExampleError(f"<{mark}> is no placeholder: {SLUG_RULE}")
    return slug


def is_slug(name: str) -> bool:
    """True for a name that may stand between angle brackets."""
    return SLUG.match(name) is not None and not re.search(r"_\d+\Z", name)


def share_concepts(sentences: Sequence[Sentence]) -> tuple[Sentence, ...]:
    """The same sentences over one list of concepts: equal slugs are one concept (MCPL-diverse).

    A shared concept starts from the first initializer that is given, and is an object where any sentence takes it for
    one. One sentence alone comes back as it is.
    """
    if len(sentences) == 1:
        return tuple(sentences)
    merged: dict[str, Concept] = {}
    for concept in (concept for sentence in sentences for concept in sentence.concepts):
        known = merged.get(concept.slug, concept)
        merged[concept.slug] = Concept(
            concept.slug,
            known.initializer or concept.initializer,
            tuple(dict.fromkeys(known.adjectives + concept.adjectives)),
            known.is_object or concept.is_object,
        )
    order = {slug: index for index, slug in enumerate(merged)}

    def shared(sentence: Sentence) -> Sentence:
        index = [order[concept.slug] for concept in sentence.concepts]
        words = (replace(w, concept=None if w.concept is None else index[w.concept]) for w in sentence.words)
        return Sentence(sentence.text, tuple(words), tuple(merged.values()))

    return tuple(map(shared, sentences))


def about(sentence: Sentence, chosen: Sequence[int], adjectives: bool = True) -> Sentence:
    """A sentence of these concepts and nothing else: "a brown <bear> and a rolling <board>" (union sampling)."""
    words: list[Word] = []
    for concept in chosen:
        bound = (w for w in sentence.words if w.role == "adjective" and w.concept == concept) if adjectives else ()
        name = Word(sentence.concepts[concept].placeholder, "placeholder", concept)
        words += [*([Word("and", "word")] if words else []), Word("a", "word"), *bound, name]
    return Sentence(" ".join(word.text for word in words), tuple(words), sentence.concepts)


def named(sentence: Sentence) -> tuple[int, ...]:
    """The concepts that a sentence names, in the order of its concepts."""
    return tuple(sorted({word.concept for word in sentence.words if word.role == "placeholder"}))


def mark(text: str, nouns: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Put listed nouns of a plain caption in angle brackets, first occurrence each; returns (text, slugs found).

    The rest of the caption, punctuation and spacing included, stays as it is.
    """
    listed = tuple(n.lower() for n in nouns)
    found: list[str] = [m.partition(":")[0].lower() for m in re.findall(r"<([^<>\s]*)>", text)]

    def replace(match: re.Match) -> str:
        if not match[2]:
            return match[0]
        slug = _listed(match[2].lower(), listed)
        if slug is None or slug in found:
            return match[0]
        found.append(_checked(slug, slug))
        return f"<{slug}>"

    return _LEXEME.sub(replace, text), tuple(found)


def plain(sentence: Sentence, names: Mapping[str, str] | None = None) -> str:
    """The sentence with each placeholder replaced by a plain name (its slug where none is given)."""
    names = names or {}

    def name(slug: str) -> str:
        return names.get(slug, slug)

    return re.sub(r"<([^<>\s:]*)(?::[^<>\s]*)?>", lambda m: name(m[1].lower()), sentence.text)


def tokenize(
    sentence: Sentence,
    vocabulary: Vocabulary,
    vectors_per_word: int | Sequence[int] = 1,
    stand_ins: Mapping[str, int] | None = None,
    templates: Sequence[str] = TEMPLATES,
) -> Prompt:
    """Token rows of a sentence in each template (T templates, L tokens).

    A placeholder takes `vectors_per_word` neighbouring positions (one number for all concepts, or one for each), each
    with a slot of its own; the token id under it
    is an ordinary stand-in (`stand_ins[slug]`, else the vocabulary's end token is never used: the first piece of the
    slug), so ids above the end token never occur.

    Raises ExampleError where a row is longer than the encoder holds; `fitting` gives the templates in which none is.
    """
    stand_ins = stand_ins or {}
    if isinstance(vectors_per_word, int):
        vectors_per_word = [vectors_per_word] * len(sentence.concepts)
    rows = [_token_row(sentence, vocabulary, vectors_per_word, stand_ins, template) for template in templates]
    ids, slots, groups, placed = (torch.stack(column) for column in zip(*rows, strict=True))
    return Prompt(ids, slots, groups, placed)


def word_positions(
    sentence: Sentence, vocabulary: Vocabulary, vectors_per_word: int | Sequence[int] = 1
) -> tuple[range, ...]:
    """The token positions of each word of a sentence, as `tokenize` places them without a template."""
    if isinstance(vectors_per_word, int):
        vectors_per_word = [vectors_per_word] * len(sentence.concepts)
    ranges, start = [], 1
    for word in sentence.words:
        own = word.role == "placeholder"
        end = start + (vectors_per_word[word.concept] if own else len(vocabulary.pieces(word.text)))
        ranges.append(range(start, end))
        start = end
    return tuple(ranges)


def token_count(
    sentence: Sentence, vocabulary: Vocabulary, vectors_per_word: int = 1, templates: Sequence[str] = TEMPLATES
) -> int:
    """Tokens of a sentence in its longest template, start and end included; `tokenize` refuses more than L."""

    def pieces(words: Iterable[str]) -> int:
        return sum(len(vocabulary.pieces(word)) for word in words)

    learned = sum(word.role == "placeholder" for word in sentence.words)
    ordinary = pieces(word.text for word in sentence.words if word.role != "placeholder")
    around = max(pieces(template.replace("{}", " ").split()) for template in templates)
    return learned * vectors_per_word + ordinary + around + 2


def fitting(
    sentences: Sequence[Sentence], vocabulary: Vocabulary, vectors_per_word: int, templates: Sequence[str] = TEMPLATES
) -> tuple[str, ...]:
    """The first template, and those of the others in which every sentence fits the text encoder."""

    def fits(template: str) -> bool:
        return all(token_count(s, vocabulary, vectors_per_word, [template]) <= vocabulary.length for s in sentences)

    return (templates[0], *filter(fits, templates[1:]))


def _token_row(sentence, vocabulary, vectors_per_word, stand_ins, template):
    before, _, after = template.partition("{}")
    entries = [(vocabulary.start, -1, -1, False)]  # (token, slot, concept, is placeholder)
    for word in before.split():
        entries += [(piece, -1, -1, False) for piece in vocabulary.pieces(word)]
    for word in sentence.words:
        if word.role == "placeholder":
            slug = sentence.concepts[word.concept].slug
            stand_in = stand_ins.get(slug) or vocabulary.pieces(slug)[0]
            first = sum(vectors_per_word[: word.concept])
            entries += [(stand_in, first + v, word.concept, True) for v in range(vectors_per_word[word.concept])]
        else:
            group = word.concept if word.role == "adjective" else -1
            entries += [(piece, -1, group, False) for piece in vocabulary.pieces(word.text)]
    for word in after.split():
        entries += [(piece, -1, -1, False) for piece in vocabulary.pieces(word)]
    entries.append((vocabulary.end, -1, -1, False))
    if len(entries) > vocabulary.length:
        around = f" with template {template!r}" if before or after else ""
        raise ExampleError(
            f"{len(entries)} tokens{around}, but the text encoder holds {vocabulary.length}: shorten {sentence.text!r}"
        )
    entries += [(vocabulary.pad, -1, -1, False)] * (vocabulary.length - len(entries))
    ids, slots, groups, placed = zip(*entries, strict=True)
    return torch.tensor(ids), torch.tensor(slots), torch.tensor(groups), torch.tensor(placed)
