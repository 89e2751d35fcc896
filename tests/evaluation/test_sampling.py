"""Several sentences drawn at once."""

from __future__ import annotations

import torch

from mcpl.evaluation.sampling import Sampling, Wish, drawn_together, generate
from mcpl.prompts import parse


def test_drawn_together_each_is_what_it_is_alone(tiny):
    """Sentences, words, numbers of vectors and seeds of one batch do not mix."""
    generator = torch.Generator().manual_seed(3)
    star, ring = (torch.randn(k, tiny.facts.width, generator=generator, dtype=torch.float64) for k in (1, 2))
    wishes = [
        Wish(parse("a <star>"), {"star": star}, 1),
        Wish(parse("a red <ring> above a <star>"), {"star": star, "ring": ring}, 2),
        Wish(parse("a <star>"), {"star": star}, 2),
    ]
    sampling = Sampling(steps=3)
    together = drawn_together(tiny, wishes, 2, sampling)
    for wish, own in zip(wishes, together, strict=True):
        alone = generate(tiny, wish.sentence, wish.vectors, 2, wish.seed, sampling)
        assert own.shape == alone.shape and (own.int() - alone.int()).abs().max() <= 1
    assert not torch.equal(together[0], together[2])
