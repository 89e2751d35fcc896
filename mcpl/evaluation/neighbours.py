"""Which learned words are near each other: cosine between words' mean vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROWS = 512
"""words compared with all others at once: bounds the memory"""


def nearest(vectors: Sequence[np.ndarray], count: int = 5) -> list[list[tuple[int, float]]]:
    """For each word [n, D] its `count` nearest others, (index, cosine), nearest first.

    Words of another width belong to another base and are never near; neither is one whose vectors cancel out.
    """
    found: list[list[tuple[int, float]]] = [[] for _ in vectors]
    for width in {word.shape[-1] for word in vectors}:
        members = np.array([i for i, word in enumerate(vectors) if word.shape[-1] == width])
        means = np.stack([np.asarray(vectors[i], np.float32).mean(axis=0) for i in members])
        length = np.linalg.norm(means, axis=1, keepdims=True)
        unit = np.divide(means, length, out=np.zeros_like(means), where=length > 0)
        for start in range(0, len(members), ROWS):
            cosines = unit[start : start + ROWS] @ unit.T
            rows = np.arange(len(cosines))
            cosines[rows, start + rows] = -np.inf
            cosines[:, length[:, 0] == 0] = -np.inf
            cosines[length[start : start + ROWS, 0] == 0] = -np.inf
            most = min(count, len(members) - 1)
            best = np.argpartition(-cosines, most - 1, axis=1)[:, :most] if most else np.empty((len(rows), 0), int)
            for row in rows:
                order = best[row][np.argsort(-cosines[row, best[row]], kind="stable")]
                found[members[start + row]] = [
                    (int(members[j]), float(cosines[row, j])) for j in order if np.isfinite(cosines[row, j])
                ]
    return found
