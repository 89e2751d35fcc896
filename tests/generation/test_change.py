"""Which tokens hand their attention on to which, by hand."""

from __future__ import annotations

import pytest
import torch

from mcpl.errors import ConfigError
from mcpl.generation.change import heads, mapped, refined, replaced, shown_by, weighted
from mcpl.prompts import said


class Letters:
    """A vocabulary in which every word of more than five letters is two pieces."""

    start, end, pad, length = 0, 1, 2, 12

    def pieces(self, word: str) -> tuple[int, ...]:
        return (7, 8) if len(word) > 5 else (7,)


def taken(change, lengths) -> dict[int, list[int]]:
    """token of the second sentence -> tokens of the first whose attention it takes over"""
    found = mapped(change, Letters(), lengths)
    sources = {j: found.take[:, j].nonzero().flatten().tolist() for j in range(Letters.length)}
    return {j: own for j, own in sources.items() if found.taken[j]}


def test_a_replaced_word_looks_where_the_old_one_looked():
    """a red <bear> with 2 vectors -> a red <cat> with 1: start a red | bear bear -> cat | end."""
    change = replaced("a red <bear>", {"<bear>": "<cat>"})
    assert change.after.text == "a red <cat>"
    assert change.changed == ((2,), (2,))
    found = taken(change, {"bear": 2, "cat": 1})
    assert [found[j] for j in range(5)] == [[0], [1], [2], [3, 4], [5]]
    shares = mapped(change, Letters(), {"bear": 2, "cat": 1}).take
    assert shares[[3, 4], 3].tolist() == [1, 1], "both vectors' attention is the one's"
    longer = mapped(change, Letters(), {"bear": 1, "cat": 2}).take
    assert longer[3, [3, 4]].tolist() == [0.5, 0.5], "none is lost, none is made"


def test_nothing_changed_is_the_identity():
    found = mapped(refined("a <bear> on a <board>", "a <bear> on a <board>"), Letters(), {"bear": 3, "board": 1})
    assert torch.equal(found.take, torch.eye(Letters.length)) and found.taken.all() and (found.weights == 1).all()


def test_a_refined_sentence_leaves_new_words_to_look_for_themselves():
    """a <bear> -> a striped <bear>: 'striped' is two pieces; end and padding move by them."""
    change = refined("a <bear>", "a striped <bear>")
    found = taken(change, {"bear": 1})
    assert 2 not in found and 3 not in found
    assert (found[0], found[1], found[4], found[5], found[6]) == ([0], [1], [2], [3], [4])
    assert change.changed == ((), (2,)), "the change shows where the bear is"


def test_an_adjective_shows_on_its_noun_learned_or_not():
    learned = replaced("a red <heart> left of a blue <moon>", {"red": "green"})
    assert [s.words[i].text for s, (i,) in zip((learned.before, learned.after), learned.changed, strict=True)] == [
        "<heart>",
        "<heart>",
    ]
    plain = replaced("a red striped star left of a blue ring", {"red": "green"})
    assert [plain.before.words[i].text for i in plain.changed[0]] == ["star"]


def test_heads_are_what_things_are_called():
    sentence = said("a red striped <star> left of a blue ring on a grey ground")
    assert [sentence.words[i].text for i in heads(sentence)] == ["<star>", "ring", "ground"]


def test_weights_reach_every_vector_of_a_word():
    change = weighted(refined("a <bear> on a <board>", "a <bear> on a <board>"), {"<bear>": 1.5})
    assert mapped(change, Letters(), {"bear": 2, "board": 1}).weights[:5].tolist() == [1, 1, 1.5, 1.5, 1]
    assert change.changed == ((1,), (1,))


def test_several_replacements_and_words_that_stand_twice():
    change = replaced("a <bear> and a <bear> left of a <moon>", {"<bear>": "brown cat", "<moon>": "sun"})
    assert change.after.text == "a brown cat and a brown cat left of a sun"
    assert [w.text for w in (change.after.words[i] for i in change.changed[1])] == ["cat", "cat", "sun"]


def test_where_it_shows_may_be_said():
    change = shown_by(replaced("a <bear> on a <board>", {"<bear>": "cat"}), ["<board>"])
    assert change.changed == ((4,), (4,))
    with pytest.raises(ConfigError, match="none of tree stands in"):
        shown_by(change, ["tree"])


def test_what_is_not_there_cannot_change():
    with pytest.raises(ConfigError, match="'<cat>' does not stand in 'a <bear>'"):
        replaced("a <bear>", {"<cat>": "dog"})
    with pytest.raises(ConfigError, match="nothing to weigh: '<cat>'"):
        weighted(refined("a <bear>", "a <bear>"), {"<cat>": 2})
