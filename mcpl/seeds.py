"""Seeds that depend on what they are for, and on nothing else."""

import hashlib


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from every part: (recipe seed, example id), (job seed, "samples") ..."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1
