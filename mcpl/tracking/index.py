"""An index over many learned words, built once at publishing and loaded with the first question for likeness.

Each word is the mean of its vectors, brought to length 1, so that nearness is the cosine. Words lie in lists around
k-means centres, told in a bit a dimension (product quantisation, 4 bits for 4 dimensions, scanned 32 at once:
arXiv 1704.07355): 110 bytes a word of width 768, in memory as on disk, since faiss maps no index of this kind. What it
proposes is ranked again by the vectors themselves, which are read from their file (`lookup_model`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LEAST = 20_000
"""words from which on an index is built: so many are compared one by one in some milliseconds"""
LISTS = 256
"""centres; few, since finding a word's own costs as much as they are many, and a list is cheap to scan"""
SAMPLE_PER_LIST = 48
ROUNDS = 8
"""of k-means"""
BLOCK = 16_384
"""words at a time: 50 MB of width 768"""


def build(table: Path, vectors: Path, width: int, out: Path) -> bool:
    """Write the index of a table's words; False, and nothing written, where they are few."""
    import numpy as np
    import pyarrow.parquet as pq

    columns = pq.read_table(table, columns=["start", "n_vectors"])
    starts, counts = (columns[name].to_numpy() for name in ("start", "n_vectors"))
    if len(starts) < LEAST:
        return False
    import faiss

    stored = np.memmap(vectors, np.float32, "r").reshape(-1, width)
    lists = min(LISTS, len(starts) // SAMPLE_PER_LIST)
    drawn = np.sort(np.random.default_rng(0).choice(len(starts), lists * SAMPLE_PER_LIST, replace=False))
    parts = width // 4 if width % 4 == 0 else width
    index = faiss.index_factory(width, f"IVF{lists},PQ{parts}x4fs", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = index.pq.cp.niter = ROUNDS
    index.train(unit_means(stored, starts[drawn], counts[drawn]))
    for place in range(0, len(starts), BLOCK):
        block = slice(place, place + BLOCK)
        index.add(unit_means(stored, starts[block], counts[block]))
    faiss.write_index(index, str(out))
    return True


def unit_means(stored: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Each word's mean vector at length 1. [words, width]"""
    import numpy as np

    if (counts == 1).all():
        means = np.array(stored[starts], np.float32)
    else:
        means = np.stack([stored[start : start + n].mean(0) for start, n in zip(starts, counts, strict=True)])
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
