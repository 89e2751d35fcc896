"""Which words are learned, bound or left alone; token rows with slots instead of new vocabulary."""

from __future__ import annotations

import pytest
import torch

from mcpl.errors import ConfigError, ExampleError
from mcpl.prompts import TEMPLATES, fitting, mark, parse, plain, token_count, tokenize


class Letters:
    """A vocabulary that spells every word with one piece per two letters."""

    start, end, pad, length = 1, 2, 2, 40

    def pieces(self, word):
        return tuple(100 + ord(word[i].lower()) for i in range(0, len(word), 2))


def roles(text, words="marked"):
    return [(w.text, w.role, w.concept) for w in parse(text, words).words if w.role != "word"]


def test_the_papers_sentence():
    assert roles("a brown <bear> on a rolling <board> at times square") == [
        ("brown", "adjective", 0),
        ("<bear>", "placeholder", 0),
        ("rolling", "adjective", 1),
        ("<board>", "placeholder", 1),
    ]


def test_punctuation_and_capitals_bind_as_they_should():
    """Defect 12: a word with a comma or a capital matches nothing in the release."""
    sentence = parse("A Brown <Bear>, and a very big, red <board>!")
    assert [c.slug for c in sentence.concepts] == ["bear", "board"]
    assert sentence.concepts[0].adjectives == ("brown",)
    assert sentence.concepts[1].adjectives == ("red",)


def test_binding_is_by_position_not_by_order_of_appearance():
    """Defect 11: only the second noun has an adjective, and it is the second noun's."""
    one, two = parse("a <bear> on a rolling <board>").concepts
    assert (one.adjectives, two.adjectives) == ((), ("rolling",))


def test_template_words_are_never_bound():
    """Defect 11: a template's adjective ("a small photo of") is no adjective of the sentence."""
    prompt = tokenize(parse("<bear>"), Letters(), templates=("a close photo of {}", "close {}"))
    assert (prompt.concept_ids >= 0).sum(dim=1).tolist() == [1, 1]


def test_an_initializer_can_be_given():
    (concept,) = parse("a <bear:toy> here").concepts
    assert (concept.slug, concept.initializer) == ("bear", "toy")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty sentence"),
        ("   ", "empty sentence"),
        ("a brown bear", "no placeholder"),
        ("a <bear> and a <bear>", "stands twice"),
        ("a <> here", "no placeholder: use"),
        ("a <bear_2>", "not ending in"),
        ("a <../etc>", "is no placeholder"),
    ],
)
def test_unusable_sentences_say_why(text, reason):
    with pytest.raises(ExampleError, match=reason):
        parse(text)


def test_listed_nouns_are_found_wherever_they_stand():
    sentence = parse("Two brown Bears, a board.", "list:bear,board")
    assert [c.slug for c in sentence.concepts] == ["bear", "board"]
    assert sentence.concepts[0].adjectives == ("brown",)
    assert parse("nothing of the kind", "list:bear").concepts == ()


def test_all_learns_every_word_but_articles():
    sentence = parse("a brown <bear> on a <board>", "all")
    assert [c.slug for c in sentence.concepts] == ["brown", "bear", "on", "board"]
    assert [c.is_object for c in sentence.concepts] == [False, True, False, True]
    assert [c.initializer for c in sentence.concepts][:1] == ["brown"]
    unmarked = parse("red ball above red box", "all")
    assert [(c.slug, c.is_object) for c in unmarked.concepts] == [
        ("red", False),  # an adjective's map is no part of the mask, wherever the word stands first
        ("ball", True),
        ("above", False),
        ("box", True),
    ]


@pytest.mark.parametrize("noun", ["größe", "4x4", "bear_2", "a b"])
def test_a_listed_noun_must_be_able_to_stand_in_brackets(noun):
    with pytest.raises(ConfigError, match="neither a file that is there nor a noun"):
        parse("whatever", f"list:star,{noun}")


def test_unknown_words_setting_is_a_config_error():
    with pytest.raises(ConfigError, match="words"):
        parse("a <bear>", "sometimes")


def test_mark_keeps_the_rest_of_the_caption():
    text, found = mark("A bear, two boards; another bear.", ["bear", "board"])
    assert text == "A <bear>, two <board>; another bear."
    assert found == ("bear", "board")
    assert mark(text, ["bear"]) == (text, ("bear", "board"))


def test_mark_then_parse_round_trip_on_the_authors_file_names():
    text, found = mark("leather shoes classic camera and a rolled banknote", ["shoes", "camera", "banknote"])
    assert [c.adjectives for c in parse(text).concepts] == [("leather",), ("classic",), ("rolled",)]
    assert plain(parse(text)) == "leather shoes classic camera and a rolled banknote"
    assert found == ("shoes", "camera", "banknote")


def test_token_rows_by_hand():
    prompt = tokenize(parse("a red <bear>"), Letters(), vectors_per_word=2, templates=("{}", "see {}"))
    a, r, d, b = (100 + ord(c) for c in "ardb")
    s, e = 100 + ord("s"), 100 + ord("e")
    assert prompt.token_ids[0, :8].tolist() == [1, a, r, d, b, b, 2, 2]
    assert prompt.slot_ids[0, :8].tolist() == [-1, -1, -1, -1, 0, 1, -1, -1]
    assert prompt.concept_ids[0, :8].tolist() == [-1, -1, 0, 0, 0, 0, -1, -1]
    assert prompt.placeholder[0, :8].tolist() == [False] * 4 + [True] * 2 + [False] * 2
    assert prompt.token_ids[1, :5].tolist() == [1, s, e, a, r]
    assert prompt.token_ids.shape == (2, 40)


def test_ordinary_ids_stand_under_slots():
    """Ids above the end token break pooled outputs; a slot keeps an ordinary one."""
    prompt = tokenize(parse("<x> and <y>"), Letters(), stand_ins={"x": 7})
    assert prompt.token_ids[0, 1] == 7
    assert (prompt.token_ids <= 100 + ord("z")).all()


def test_too_long_is_refused_with_both_numbers():
    with pytest.raises(ExampleError, match=r"\d+ tokens, but the text encoder holds 40"):
        tokenize(parse("<x> " + "word " * 30), Letters())


def test_only_templates_that_every_sentence_fits_are_used():
    """36 words of one piece, the word, start and end: 39 of 40 tokens, so that a template may add one."""
    short, long = parse("<x>"), parse("<x> " + "to " * 36)
    assert fitting([short], Letters(), 1) == TEMPLATES
    assert token_count(long, Letters(), templates=TEMPLATES[:1]) == 39
    assert fitting([short, long], Letters(), 1) == TEMPLATES[:1]
    assert fitting([long], Letters(), 1, ("{}", "a {}", "a photo of {}")) == ("{}", "a {}")
    assert fitting([parse("<x> " + "to " * 60)], Letters(), 1) == TEMPLATES[:1]  # refused by tokenize, and told why


def test_tokens_are_counted_as_they_are_laid_out():
    """By hand: start, "see" (2 pieces of two letters), a, red (2), two vectors, end."""
    sentence = parse("a red <bear>")
    assert token_count(sentence, Letters(), vectors_per_word=2, templates=("{}", "see {}")) == 9
    for text in ("a <x>", "a big red <x>, left of a <y>!"):
        prompt = tokenize(parse(text), Letters())
        ends = (prompt.token_ids == Letters.end).int().argmax(dim=1)  # the first: padding is the same id
        assert token_count(parse(text), Letters()) == int(ends.max()) + 1


def test_templates_hold_one_place_and_start_with_the_bare_sentence():
    assert TEMPLATES[0] == "{}"
    assert all(t.count("{}") == 1 for t in TEMPLATES)
    assert len(set(TEMPLATES)) == len(TEMPLATES)
    assert not any(word in t.split() for t in TEMPLATES for word in ("left", "right"))


def test_shapes_agree():
    prompt = tokenize(parse("a <x> by a <y>"), Letters())
    assert prompt.slot_ids.shape == prompt.token_ids.shape == (len(TEMPLATES), 40)
    assert torch.equal((prompt.slot_ids >= 0), prompt.placeholder)
