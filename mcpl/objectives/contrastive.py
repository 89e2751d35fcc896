"""PromptCL and Bind adj (paper sections 3.2 and 3.4): InfoNCE over the words' text-encoder outputs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def prompt_contrastive(
    hidden: Tensor,
    concept_ids: Tensor,
    job_ids: Tensor,
    jobs: int,
    temperature: float,
    members: Tensor | None = None,
    nouns: Tensor | None = None,
) -> Tensor:
    """Multi-positive InfoNCE inside each job. [J]

    hidden: [B, L, D'] text-encoder outputs; concept_ids: [B, L] concept of a member position, -1 elsewhere.
    With s_ab the cosine similarity, P(a) the other members of a's concept in the same job:

        mean over anchors a of  -1/|P(a)|  sum over p in P(a) of
            log( exp(s_ap / tau) / sum over b != a of exp(s_ab / tau) )

    Anchors without positives are left out; a job without anchors gives 0. Positives are found by concept id, never
    by position in the batch, so any number of rows and concepts is right. members [2, n]: row and position of all that
    may count, where they are known already; finding them makes the host wait for the device. nouns [B, L] bool: only
    pairs of a marked and an unmarked member are positives.
    """
    row, position = (concept_ids >= 0).nonzero(as_tuple=True) if members is None else members
    vectors = F.normalize(hidden[row, position].to(torch.promote_types(hidden.dtype, torch.float32)), dim=-1)
    job, concept = job_ids[row], concept_ids[row, position]
    other = ~torch.eye(len(row), dtype=torch.bool, device=hidden.device)
    same_job = (job[:, None] == job[None]) & other & (concept >= 0)
    positive = same_job & (concept[:, None] == concept[None])
    if nouns is not None:
        noun = nouns[row, position]
        positive = positive & (noun[:, None] != noun[None])

    logits = (vectors @ vectors.T / temperature).masked_fill(~same_job, -torch.inf)
    positives = positive.sum(dim=1)
    log_probability = (logits - logits.logsumexp(dim=1, keepdim=True)).masked_fill(~positive, 0.0)
    per_anchor = -log_probability.sum(dim=1) / positives.clamp_min(1)  # 0 for what is no anchor

    total = per_anchor.new_zeros(jobs).index_add(0, job, per_anchor)
    count = per_anchor.new_zeros(jobs).index_add(0, job, (positives > 0).to(per_anchor))
    return total / count.clamp_min(1)
