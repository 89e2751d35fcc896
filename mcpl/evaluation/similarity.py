"""How alike sets of feature vectors are: pairwise cosines, kernel distance (KID), silhouette, two dimensions of many.

Numbers only, in float64; which pictures or words the vectors [n, D] belong to is the caller's business.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST = 2000
"""vectors of a silhouette or a map; of more, so many are drawn at random: both grow with the square"""


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of every vector of one set with every one of another, [n, D] and [m, D] to [n, m]; 0 for a zero vector."""
    return _unit(first) @ _unit(second).T


def pairwise(vectors: np.ndarray) -> np.ndarray:
    """Cosine of every two different vectors of one set, each pair once. [n (n - 1) / 2]"""
    return cosines(vectors, vectors)[np.triu_indices(len(vectors), 1)]


def across(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosines of pictures of two sets that were drawn on the same noise, picture by picture: pairs [n (m - 1)] of
    unequal noise only, since noise alone makes pictures alike. All pairs where either set has but one picture."""
    every = cosines(first, second)
    if min(every.shape) < 2:
        return every.ravel()
    return every[~np.eye(*every.shape, dtype=bool)]


def mmd(first: np.ndarray, second: np.ndarray) -> float:
    """Squared maximum mean discrepancy, unbiased, with the kernel (x.y / D + 1)^3 (Binkowski et al., 2018).

    Near 0, below it too, for sets of one distribution; not-a-number where a set has fewer than two vectors.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    n, m = len(first), len(second)
    if min(n, m) < 2:
        return float("nan")

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    xx, yy = kernel(first, first), kernel(second, second)
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(within - 2 * kernel(first, second).mean())


def kid(
    first: np.ndarray, second: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """(mean, standard deviation) of `mmd` over random subsets of at most `size`: the kernel inception distance.

    One comparison of everything, with a deviation of 0, where neither set is larger than a subset.
    """
    if max(len(first), len(second)) <= size:
        return mmd(first, second), 0.0
    rng = np.random.default_rng(seed)

    def some(of: np.ndarray) -> np.ndarray:
        return of[rng.permutation(len(of))[:size]]

    found = [mmd(some(first), some(second)) for _ in range(subsets)]
    return float(np.mean(found)), float(np.std(found))


def silhouette(vectors: np.ndarray, labels: Sequence[str], seed: int = 0) -> float:
    """How much nearer, by cosine, vectors are to their own label's than to the nearest other's, -1 to 1 (Rousseeuw).

    Labels that stand alone are left out; not-a-number unless two are left.
    """
    from sklearn.metrics import silhouette_score

    names, counts = np.unique(labels, return_counts=True)
    kept = np.flatnonzero(np.isin(labels, names[counts > 1]))
    if len(np.unique(np.asarray(labels)[kept])) < 2:
        return float("nan")
    some = min(MOST, len(kept)) if len(kept) > MOST else None
    own = np.asarray(vectors, np.float64)[kept]
    return float(silhouette_score(own, np.asarray(labels)[kept], metric="cosine", sample_size=some, random_state=seed))


def flattened(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """A map in which like vectors lie together: t-SNE over cosine distance, begun from the principal components.
    [n, D] to [n, 2]; the two principal components where there are fewer than five."""
    unit = _unit(vectors)
    if len(unit) < 5:
        left, scale, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
        found = (left * scale)[:, :2]
        return np.pad(found, ((0, 0), (0, 2 - found.shape[1])))
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(unit) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(unit).astype(float)


def _unit(vectors: np.ndarray) -> np.ndarray:
    array = np.asarray(vectors, np.float64)
    length = np.linalg.norm(array, axis=-1, keepdims=True)
    return np.divide(array, length, out=np.zeros_like(array), where=length > 0)
