"""Which way a score is better, wherever scores are compared."""

LOWER = frozenset({"fixed_noise_loss", "object_loss", "ground_loss", "leak", "word_similarity", "prompt_similarity"})


def lower_is_better(score: str) -> bool:
    """Whether less of a score, or of what it was before learning, is better; signs of failure all are so."""
    return score.startswith("sign_") or score.removesuffix("_step0") in LOWER
