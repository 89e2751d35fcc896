"""Words of several banks, files and pictures in one sentence: who gets which name, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mcpl.data.bank import encode, part_name
from mcpl.data.embeddings import safetensors_file
from mcpl.errors import BankMismatch, ConfigError
from mcpl.generation.words import check_base, gather
from mcpl.models.base import Facts
from mcpl.types import BankRow, Concept, CurvePoint, LearnedConcept, LearnedConcepts, Provenance


def bank(folder, *pictures: tuple[str, dict[str, float]], digest="d" * 16) -> str:
    """A bank of pictures whose words are one vector, all of one number."""
    rows = []
    for id, words in pictures:
        maps = torch.zeros(2, 2)
        concepts = tuple(LearnedConcept(Concept(s), torch.full((1, 4), v), maps, maps) for s, v in words.items())
        learned = LearnedConcepts(id, concepts, (CurvePoint(0, 1.0, 1.0, 1.0, 0.0),), {}, 1, 1)
        told = Provenance("paper", "f" * 16, "scenes-v1", digest, 0, "c", "1" * 64, "2" * 64)
        rows.append(BankRow(id, " ".join(f"<{slug}>" for slug in words), "learned", told, learned=learned))
    folder.mkdir()
    (folder / part_name(0)).write_bytes(encode(rows))
    return str(folder)


def numbers(words) -> dict[str, float]:
    return {slug: float(word.vectors[0, 0]) for slug, word in words.items()}


def test_words_of_several_banks_and_files_come_together(tmp_path):
    first = bank(tmp_path / "a", ("p", {"bear": 1, "board": 2}))
    second = bank(tmp_path / "b", ("q", {"moon": 3}))
    file = tmp_path / "words" / "concepts" / "sun" / "learned_embeds.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(safetensors_file("sun", torch.full((2, 4), 4.0).numpy(), {"mcpl.base": "scenes-v1"}))
    for where in (file, tmp_path / "words"):
        words, notes = gather(("moon", "bear", "sun"), [first, second, where])
        assert numbers(words) == {"moon": 3, "bear": 1, "sun": 4} and not notes
        assert words["sun"].vectors.shape == (2, 4) and words["sun"].base == "scenes-v1"
    assert (words["bear"].picture, words["bear"].base_digest) == ("p", "d" * 16)


def test_equal_names_are_numbered_in_order_and_said(tmp_path):
    first = bank(tmp_path / "a", ("p", {"bear": 1}), ("q", {"bear": 2}))
    second = bank(tmp_path / "b", ("r", {"bear": 3}))
    words, notes = gather(("bear-3", "bear", "bear-2"), [first, second])
    assert numbers(words) == {"bear-3": 3, "bear": 1, "bear-2": 2}
    assert {slug: word.slug for slug, word in words.items()} == {s: s for s in words}
    (note,) = notes
    assert "<bear> was learned 3 times" in note and f"<bear-3> is that of picture r in {second}" in note
    with pytest.raises(ConfigError, match="<bear-4> was learned in none of .*; <bear> is there 3 times"):
        gather(("bear-4",), [first, second])


def test_a_name_that_is_a_words_own_is_not_given_away(tmp_path):
    only = bank(tmp_path / "a", ("p", {"bear": 1}), ("q", {"bear": 2}), ("r", {"bear-2": 9}))
    words, _ = gather(("bear-2", "bear-3"), [only])
    assert numbers(words) == {"bear-2": 9, "bear-3": 2}


def test_an_id_chooses_the_picture(tmp_path):
    only = bank(tmp_path / "a", ("p", {"bear": 1}), ("q", {"bear": 2}))
    words, notes = gather(("bear",), [only], ids=["q"])
    assert numbers(words) == {"bear": 2} and not notes
    with pytest.raises(ConfigError, match="in none of .*, in the pictures z"):
        gather(("bear",), [only], ids=["z"])


def test_learned_words_need_a_source():
    with pytest.raises(ConfigError, match="<bear> is a learned word: say where it is with --bank"):
        gather(("bear",), [])
    assert gather((), []) == ({}, [])


def test_a_word_of_another_base_is_refused(tmp_path):
    words, _ = gather(("bear",), [bank(tmp_path / "a", ("p", {"bear": 1}))])
    facts = Facts("mine", "d" * 16, "sd", 4, (4, 8, 8), 16, 8, "epsilon", ())
    check_base(words.values(), facts)
    told = r"<bear> \(that of picture p in .*\) belongs to base scenes-v1 d+, not to mine e+"
    with pytest.raises(BankMismatch, match=told):
        check_base(words.values(), replace(facts, digest="e" * 16))
