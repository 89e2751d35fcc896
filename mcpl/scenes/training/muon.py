"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal; every direction moves at the same pace.

Vectors, embeddings and the like are left to AdamW. Here because torch's own Muon takes no convolutions.
"""

from __future__ import annotations

import torch


def orthogonal(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Nearly the closest matrix with singular values 1, by quintic Newton-Schulz steps; [m, n] to [m, n].

    Each step multiplies x by a polynomial of x x^T. A wide x stays out of it: the product of the polynomials is
    found among small square matrices and meets x once, a third of the work for a convolution.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    gram, product = x @ x.T, None
    for step in range(steps):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if step + 1 < steps:
            gram = factor @ (factor @ gram)
    x = product @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonal momentum steps, scaled by 0.2 sqrt(longer side) so that AdamW's learning rates fit (Liu et al. 2025).

    Convolutions count as matrices [out, in * kh * kw].
    """

    def __init__(self, parameters, lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                speed = self.state[weight].setdefault("speed", torch.zeros_like(weight))
                speed.lerp_(weight.grad, 1 - group["momentum"])
                ahead = torch.lerp(weight.grad, speed, group["momentum"]).flatten(1)  # Nesterov
                scale = 0.2 * max(ahead.shape) ** 0.5
                weight.add_(orthogonal(ahead).view_as(weight), alpha=-group["lr"] * scale)
