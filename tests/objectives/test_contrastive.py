"""PromptCL against hand-worked values and an independent loop; positives by concept id for any batch (defect 5)."""

from __future__ import annotations

import math

import pytest
import torch

from mcpl.objectives.contrastive import prompt_contrastive

TAU = 0.3


def by_loops(hidden, concept_ids, job_ids, jobs, tau):
    """The formula of the method, written as loops over anchors."""
    totals = []
    for job in range(jobs):
        members = [
            (hidden[b, t] / hidden[b, t].norm(), int(concept_ids[b, t]))
            for b in range(hidden.shape[0])
            for t in range(hidden.shape[1])
            if job_ids[b] == job and concept_ids[b, t] >= 0
        ]
        losses = []
        for a, (va, ca) in enumerate(members):
            others = [(float(va @ vb) / tau, cb) for b, (vb, cb) in enumerate(members) if b != a]
            positives = [s for s, cb in others if cb == ca]
            if positives:
                denominator = math.log(sum(math.exp(s) for s, _ in others))
                losses.append(-sum(s - denominator for s in positives) / len(positives))
        totals.append(sum(losses) / len(losses) if losses else 0.0)
    return torch.tensor(totals, dtype=hidden.dtype)


def test_hand_worked_two_rows_two_concepts():
    """Two concepts on orthogonal axes, two rows: every anchor has s = 1 to its positive, 0 to both negatives."""
    hidden = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    ids = torch.tensor([[0, 1], [0, 1]])
    expected = -math.log(math.exp(1 / TAU) / (math.exp(1 / TAU) + 2))
    assert prompt_contrastive(hidden, ids, torch.zeros(2, dtype=torch.long), 1, TAU).item() == pytest.approx(expected)


@pytest.mark.parametrize("concepts", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
def test_positives_by_id_for_any_number_of_concepts_and_rows(concepts, rows):
    torch.manual_seed(concepts * 10 + rows)
    hidden = torch.randn(2 * rows, concepts + 2, 8, dtype=torch.float64)
    ids = torch.full((2 * rows, concepts + 2), -1)
    for row in range(2 * rows):  # concepts stand in another order in every row
        ids[row, torch.randperm(concepts + 2)[:concepts]] = torch.randperm(concepts)
    job_ids = torch.tensor([0] * rows + [1] * rows)
    ours = prompt_contrastive(hidden, ids, job_ids, 2, TAU)
    assert torch.allclose(ours, by_loops(hidden, ids, job_ids, 2, TAU), atol=1e-12)
    if rows == 1:
        assert torch.equal(ours, torch.zeros(2, dtype=torch.float64)), "one row and no adjective has no positives"


def test_perfect_separation_is_better_than_swapped_positives():
    """With 3 concepts and 4 rows the release pairs other concepts: aligned concepts must score lower than shuffled."""
    axes = torch.eye(3, dtype=torch.float64).expand(4, 3, 3).contiguous()
    ids = torch.arange(3).expand(4, 3)
    shuffled = torch.stack([torch.roll(torch.arange(3), r) for r in range(4)])
    zero = torch.zeros(4, dtype=torch.long)
    assert prompt_contrastive(axes, ids, zero, 1, TAU) < prompt_contrastive(axes, shuffled, zero, 1, TAU)


def test_jobs_never_meet():
    torch.manual_seed(0)
    hidden = torch.randn(4, 3, 8, dtype=torch.float64)
    ids = torch.tensor([[0, 1, -1]] * 4)
    job_ids = torch.tensor([0, 0, 1, 1])
    both = prompt_contrastive(hidden, ids, job_ids, 2, TAU)
    for job in range(2):
        alone = prompt_contrastive(hidden[job_ids == job], ids[:2], torch.zeros(2, dtype=torch.long), 1, TAU)
        assert torch.equal(alone[0], both[job])


def test_gradient_is_finite_and_reaches_members_only():
    """Jobs with no positives, one member, and many in one batch: no 0/0, no NaN through masked positions."""
    torch.manual_seed(0)
    hidden = torch.randn(4, 3, 8, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 1, -1], [0, 1, -1], [0, -1, -1], [-1, -1, -1]])
    job_ids = torch.tensor([0, 0, 1, 2])
    prompt_contrastive(hidden, ids, job_ids, 3, TAU).sum().backward()
    assert torch.isfinite(hidden.grad).all()
    assert (hidden.grad[:2, :2] != 0).any() and (hidden.grad[:2, 2] == 0).all() and (hidden.grad[2:] == 0).all()


def test_gradient_matches_finite_differences():
    torch.manual_seed(0)
    hidden = torch.randn(4, 4, 5, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 1, 2, 0], [2, 1, 0, -1], [0, 1, -1, 2], [1, -1, 0, 2]])
    job_ids = torch.tensor([0, 0, 1, 1])
    assert torch.autograd.gradcheck(lambda h: prompt_contrastive(h, ids, job_ids, 2, TAU), hidden)


def test_bind_adj_alone_pairs_nouns_with_their_adjectives():
    """Two concepts on orthogonal axes, one adjective each: anchors are all four, each with one positive."""
    along, apart = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    hidden = torch.stack([along, along, apart, apart])[None].double()
    ids, nouns = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[False, True, False, True]])
    zero = torch.zeros(1, dtype=torch.long)
    expected = -math.log(math.exp(1 / TAU) / (math.exp(1 / TAU) + 2))
    assert prompt_contrastive(hidden, ids, zero, 1, TAU, nouns=nouns).item() == pytest.approx(expected)
    none = torch.ones(1, 4, dtype=torch.bool)
    assert prompt_contrastive(hidden, ids, zero, 1, TAU, nouns=none).item() == 0, "no adjective, no pair"
    two = hidden.expand(2, 4, 3).contiguous().requires_grad_()
    bound = prompt_contrastive(two, ids.expand(2, 4), zero.expand(2), 1, TAU, nouns=nouns.expand(2, 4))
    bound.sum().backward()
    assert torch.isfinite(two.grad).all()
