"""What the Parquet files hold: a dataset's columns, the bank's columns, and which of those are compared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyarrow as pa

from mcpl.errors import ConfigError

ROW_GROUP = 64
"""rows per row group: a random read of a picture took 5 ms at 64 rows and 62 ms at 512"""

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
MASKS = pa.list_(pa.struct([("word", pa.string()), ("png", pa.binary())]))

DATASET = pa.schema(
    [
        ("image", IMAGE),  # the picture's file as it was stored
        ("image_id", pa.string()),
        ("text", pa.string()),  # the sentence, words to learn marked <so>
        ("masks", MASKS),  # optional: word -> PNG, above 127 belongs to the object
        ("truth", pa.string()),  # optional: JSON of the rendered scene
        ("group", pa.string()),  # optional: name shared by pictures of the same concepts (MCPL-diverse)
    ]
)
REQUIRED = ("image", "image_id", "text")
OPTIONAL = ("masks", "truth", "group")


@contextlib.contextmanager
def undamaged(name: str, advice: str = "") -> Iterator[None]:
    """Reading a Parquet file: ConfigError naming it where it is cut short or damaged, and then the advice."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as fault:
        if isinstance(fault, ConnectionError | FileNotFoundError):
            raise
        reason = str(fault).splitlines()[0]
        raise ConfigError(f"{name} is cut short or damaged ({reason}){advice}") from None


def is_words(type: pa.DataType) -> bool:
    return pa.types.is_string(type) or pa.types.is_large_string(type)


def is_masks(type: pa.DataType) -> bool:
    """Is it MASKS, whatever the program that wrote it calls a list's elements?"""
    if not (pa.types.is_list(type) or pa.types.is_large_list(type)) or not pa.types.is_struct(type.value_type):
        return False
    return {field.name for field in type.value_type} == {field.name for field in MASKS.value_type}


CONCEPT = pa.struct(
    [
        ("slug", pa.string()),
        ("initializer", pa.string()),
        ("adjectives", pa.list_(pa.string())),
        ("is_object", pa.bool_()),
        ("vectors", pa.list_(pa.float32())),  # [n_vectors * width], row by row
        ("n_vectors", pa.int32()),
        ("width", pa.int32()),
        ("norm", pa.float32()),  # mean Euclidean length of the vectors
        ("attention", pa.binary()),  # [m * m] uint8, 255 = the map's maximum
        ("attention_step0", pa.binary()),
        ("attention_size", pa.int32()),  # m
    ]
)
CURVE_POINT = pa.struct(
    [
        ("step", pa.int32()),
        ("fixed_noise_loss", pa.float64()),
        ("mask_area", pa.float64()),
        ("norm", pa.float64()),
        ("prompt_similarity", pa.float64()),
    ]
)

GROUP_PICTURE = pa.struct(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("sha256", pa.string()),
        ("words", pa.list_(pa.string())),  # slugs that its sentence names; empty where it was left out
        ("reason", pa.string()),  # why it was left out
    ]
)

COMPARED = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("placeholders", pa.list_(pa.string())),  # <slug>, in the sentence's order
        ("concepts", pa.list_(CONCEPT)),  # null unless learned
        ("curve", pa.list_(CURVE_POINT)),
        ("losses", pa.map_(pa.string(), pa.list_(pa.float64()))),
        ("steps", pa.int32()),
        ("sample_passes", pa.int64()),
        ("metrics", pa.map_(pa.string(), pa.float64())),
        ("recipe", pa.string()),
        ("recipe_fingerprint", pa.string()),
        ("base", pa.string()),
        ("base_digest", pa.string()),
        ("seed", pa.int64()),
        ("commit", pa.string()),
        ("picture_sha256", pa.string()),
        ("sentence_sha256", pa.string()),
        ("key", pa.string()),
        ("pictures", pa.list_(GROUP_PICTURE)),  # of a group's row, null for a picture's; since format 2
    ]
)
"""The same work gives the same values in these, wherever and whenever it was done."""

UNCOMPARED = pa.schema([("seconds", pa.float64()), ("host", pa.string()), ("learned_at", pa.string())])
"""Where and when: last, and never compared."""

COMPARED_COLUMNS = tuple(COMPARED.names)
UNCOMPARED_COLUMNS = tuple(UNCOMPARED.names)

BANK_VERSION = 2
VERSION_KEY = b"mcpl.bank.version"
BANK = pa.schema([*COMPARED, *UNCOMPARED], metadata={VERSION_KEY: str(BANK_VERSION).encode()})

FEATURES = pa.struct(
    [
        ("of", pa.string()),  # a word's slug, "*together" for the whole sentence, "*picture" for what was learned from
        ("space", pa.string()),  # "text", or a name of evaluation.features.FEATURES; with "_step0": before learning
        ("count", pa.int32()),  # n vectors: as many as pictures
        ("values", pa.binary()),  # [n * width] little-endian float32
    ]
)
SCORES_VERSION = 1
SCORES_VERSION_KEY = b"mcpl.scores.version"
SCORES = pa.schema(
    [
        ("id", pa.string()),
        ("status", pa.string()),  # learned (that is: scored) or failed, the words of a bank
        ("reason", pa.string()),
        ("key", pa.string()),  # of the bank's row that was scored
        ("metrics", pa.map_(pa.string(), pa.float64())),
        ("features", pa.list_(FEATURES)),
        ("evaluation", pa.string()),  # fingerprint of what decides the scores
        ("base_digest", pa.string()),
        ("commit", pa.string()),
        ("seconds", pa.float64()),
        ("host", pa.string()),
        ("scored_at", pa.string()),
    ],
    metadata={SCORES_VERSION_KEY: str(SCORES_VERSION).encode()},
)
"""What is scored of a bank's rows after they were learned: beside the bank, in _scores/EVALUATION."""
