"""Publish a bank as a version of a registered model, find versions, look learned words up.

A version holds the table of learned words (Parquet) and a manifest; above a size limit, the manifest alone with the
table's URI and digest.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcpl.errors import ConfigError
from mcpl.tracking.base import markdown_table
from mcpl.tracking.redaction import redact
from mcpl.tracking.server import connect, experiment_id, load_mlflow, plain_errors, resolve_uri, speaking_to

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

    from mcpl.types import BankRow

CHAMPION = "champion"
COPY_LIMIT = 1 << 30  # bytes of a word table that a version carries itself
ROWS_PER_GROUP = 256  # words read together: 0.8 MB of vectors of width 768
CONCEPTS_TOLD = 1000  # distinct words listed in a manifest, the most frequent first
TAG_LENGTH = 500
CARD_LENGTH = 5000  # of a version's description
CARD_CONCEPTS = 20
ABOUT = "Words learned from pictures with mcpl. A version is one bank: look words up by `image_id` and `word`."


@dataclass(frozen=True)
class Published:
    """One version of a registered model."""

    name: str
    version: int
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = field(default="", repr=False)
    tracking_uri: str = ""
    """without credentials"""

    @property
    def load_line(self) -> str:
        """One line of Python that loads it."""
        return f'mlflow.set_tracking_uri("{self.tracking_uri}"); words = mlflow.pyfunc.load_model("{self.uri}")'

    @property
    def uri(self) -> str:
        """`models:/NAME@alias` where it has one, else `models:/NAME/version`."""
        return f"models:/{self.name}@{self.aliases[0]}" if self.aliases else f"models:/{self.name}/{self.version}"


def publish(
    rows: Iterable[BankRow],
    name: str,
    *,
    bank: str,
    alias: str | None = CHAMPION,
    tags: Mapping[str, str] | None = None,
    description: str = "",
    dataset: str = "",
    run_id: str | None = None,
    large_tables: str | None = None,
    copy_limit: int = COPY_LIMIT,
    tracking_uri: str | None = None,
    experiment: str = "mcpl",
    home: str | Path = ".",
) -> Published:
    """Register the learned words of a bank's rows as a version of `name`, and move `alias` to it.

    bank          where the rows come from, for the manifest
    description   first words of the version's card, before its tables
    run_id        the job's run, linked from the version
    large_tables  folder or s3:// prefix that keeps a word table above `copy_limit` bytes

    Publishing the very same words again makes no second version: it moves the alias.
    """
    uri = resolve_uri(tracking_uri, home)
    client = connect(uri)
    with tempfile.TemporaryDirectory(prefix="mcpl-publish-") as scratch, plain_errors(uri), speaking_to(uri):
        table = Path(scratch, "words.parquet")
        manifest = write_words(rows, table) | {"bank": redact(bank), "dataset": redact(dataset)}
        version = _same_words(client, name, manifest["files"][0]["sha256"])
        if version is None:
            if table.stat().st_size > copy_limit:
                manifest["files"][0]["uri"] = _keep_outside(table, manifest, large_tables)
            source = _save_model(Path(scratch, "model"), table, manifest)
            told = {key: redact(str(value))[:TAG_LENGTH] for key, value in (_tags(manifest) | dict(tags or {})).items()}
            card = _card(name, manifest, description)
            experiment = experiment_id(client, uri, experiment, Path(home))
            version = _register(client, name, source, experiment, run_id, told, card)
        if alias:
            client.set_registered_model_alias(name, alias, version)
        return next(found for found in _all_versions(client, name) if found.version == int(version))


def versions(name: str, *, tracking_uri: str | None = None, home: str | Path = ".") -> list[Published]:
    """Every version of a registered model, newest first."""
    uri = resolve_uri(tracking_uri, home)
    client = connect(uri, make=False)
    with plain_errors(uri):
        found = _all_versions(client, name)
        if not found:
            raise _no_such_name(client, uri, name)
        return found


def set_alias(
    name: str, version: int, alias: str = CHAMPION, *, tracking_uri: str | None = None, home: str | Path = "."
) -> None:
    """Let `NAME@alias` mean this version."""
    uri = resolve_uri(tracking_uri, home)
    client = connect(uri, make=False)
    with plain_errors(uri):
        client.set_registered_model_alias(name, alias, str(version))


def lookup(
    model: str,
    *,
    image_id: str | Sequence[str] | None = None,
    word: str | Sequence[str] | None = None,
    tracking_uri: str | None = None,
    home: str | Path = ".",
) -> pd.DataFrame:
    """Learned words of a published bank: every word of the picture(s), the word(s) in every picture, or both given.

    model  NAME (its champion), NAME@alias, NAME/version, or any of them after models:/
    """
    import pandas as pd

    asked = {"image_id": image_id, "word": word}
    columns = {key: [value] if isinstance(value, str) else list(value) for key, value in asked.items() if value}
    if not columns:
        raise ConfigError("a look-up needs an image_id, a word, or both")
    query = pd.MultiIndex.from_product(columns.values(), names=columns.keys()).to_frame(index=False)
    return load(model, tracking_uri=tracking_uri, home=home).predict(query)


def base_of(model: str, *, tracking_uri: str | None = None, home: str | Path = ".") -> tuple[str | None, str | None]:
    """Name and digest of the base that a version's words were learned with."""
    uri = resolve_uri(tracking_uri, home)
    name, version = _resolve(model, uri)
    with plain_errors(uri):
        tags = connect(uri, make=False).get_model_version(name, version).tags
    return tags.get("base"), tags.get("base_digest")


def load(model: str, *, tracking_uri: str | None = None, home: str | Path = ".") -> Any:
    """The version's pyfunc, loaded once per process: a moved alias is noticed, an unmoved one costs nothing."""
    uri = resolve_uri(tracking_uri, home)
    name, version = _resolve(model, uri)
    return _load_version(uri, name, version)


def write_words(rows: Iterable[BankRow], path: Path) -> dict[str, Any]:
    """Write the table of learned words, a row per word, and return its manifest. Rows may be a stream."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("image_id", pa.string()),
            ("word", pa.string()),  # the slug, without <>
            ("sentence", pa.string()),
            ("initializer", pa.string()),
            ("vectors", pa.list_(pa.float32())),  # [n_vectors * width], row by row
            ("n_vectors", pa.int32()),
            ("norm", pa.float32()),  # mean Euclidean length of the vectors
            ("metrics", pa.map_(pa.string(), pa.float64())),  # of the picture
            ("picture_sha256", pa.string()),
        ]
    )
    statuses, concepts = Counter(), Counter()
    origin: dict[str, set[str]] = defaultdict(set)
    scores: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    width = 0

    def words() -> Iterator[dict]:
        nonlocal width
        for row in rows:
            statuses[row.status] += 1
            if row.status != "learned":
                continue
            for key in ("base", "base_digest", "recipe", "recipe_fingerprint"):
                origin[key].add(getattr(row.provenance, key))
            for key, value in row.metrics.items():
                if value == value:  # NaN says that nothing could be measured
                    scores[key] = [scores[key][0] + value, scores[key][1] + 1]
            for learned in row.learned.concepts:
                vectors = np.asarray(learned.vectors, dtype=np.float32)
                width = vectors.shape[1]
                concepts[learned.concept.slug] += 1
                yield {
                    "image_id": row.id,
                    "word": learned.concept.slug,
                    "sentence": row.text,
                    "initializer": learned.concept.initializer,
                    "vectors": vectors.ravel(),
                    "n_vectors": len(vectors),
                    "norm": float(np.linalg.norm(vectors, axis=1).mean()),
                    "metrics": sorted(row.metrics.items()),
                    "picture_sha256": row.provenance.picture_sha256,
                }

    narrow = [name for name in schema.names if name != "vectors"]  # vectors neither repeat nor compress
    packed = dict.fromkeys(narrow, "zstd") | {"vectors": "none"}
    with pq.ParquetWriter(path, schema, compression=packed, use_dictionary=narrow) as writer:
        for batch in _batches(words(), ROWS_PER_GROUP):
            rows_of = [word.pop("vectors") for word in batch]
            ends = np.cumsum([0, *map(len, rows_of)], dtype=np.int32)
            table = pa.Table.from_pylist(batch, schema.remove(schema.get_field_index("vectors")))
            vectors = pa.ListArray.from_arrays(ends, np.concatenate(rows_of))
            writer.write_table(table.append_column("vectors", vectors).select(schema.names))
    if not concepts:
        told = ", ".join(f"{count} {status}" for status, count in statuses.items()) or "no rows"
        raise ConfigError(f"nothing to publish: the bank holds {told}, and none learned")
    if len(origin["base_digest"]) > 1:
        raise ConfigError(f"words of different bases are never mixed, and the bank holds {sorted(origin['base'])}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "format": "mcpl.words",
        "format_version": 1,
        "files": [{"name": path.name, "sha256": digest, "bytes": path.stat().st_size}],
        **{key: ", ".join(sorted(values)) for key, values in origin.items()},
        "pictures": statuses["learned"],
        "left_out": {status: count for status, count in statuses.items() if status != "learned"},
        "words": concepts.total(),
        "width": width,
        "distinct_words": len(concepts),
        "concepts": dict(concepts.most_common(CONCEPTS_TOLD)),
        "scores": {key: {"mean": total / n, "n": n} for key, (total, n) in sorted(scores.items())},
    }


def _batches(items: Iterator[dict], size: int) -> Iterator[list[dict]]:
    batch: list[dict] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _keep_outside(table: Path, manifest: Mapping[str, Any], folder: str | None) -> str:
    """Copy a large table under a name made of its digest, and return its URI."""
    from pyarrow import fs

    if folder is None:
        raise ConfigError(
            f"the word table has {table.stat().st_size / 1e9:.1f} GB, too much for a copy in the registry: "
            "name a folder or s3:// prefix that keeps it"
        )
    root = folder.rstrip("/") if "://" in folder else Path(folder).resolve().as_uri()
    uri = f"{root}/words-{manifest['files'][0]['sha256'][:16]}.parquet"
    filesystem, path = fs.FileSystem.from_uri(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    fs.copy_files(str(table), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem)
    return uri


def _save_model(folder: Path, table: Path, manifest: Mapping[str, Any]) -> Path:
    """The model directory: lookup_model.py as it is, the manifest, and the table unless it is kept outside."""
    mlflow = load_mlflow()
    import pyarrow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    written = folder.with_name("manifest.json")
    written.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    artifacts = {"manifest": str(written)}
    if "uri" not in manifest["files"][0]:
        artifacts["words"] = str(table)
    needs = [f"mlflow=={mlflow.__version__}", f"pyarrow>={pyarrow.__version__.split('.')[0]}", "pandas"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asks for an input example, which would run the model here
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(Path(__file__).with_name("lookup_model.py")),
            artifacts=artifacts,
            signature=ModelSignature(Schema([ColSpec("string", key, required=False) for key in ("image_id", "word")])),
            pip_requirements=needs,
        )
    return folder


def _register(
    client: MlflowClient,
    name: str,
    source: Path,
    experiment: str,
    run_id: str | None,
    tags: Mapping[str, str],
    card: str,
) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=ABOUT)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model = client.create_logged_model(experiment, "words", source_run_id=run_id, model_type="mcpl.words")
    try:
        client.log_model_artifacts(model.model_id, str(source))
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    made = client.create_model_version(
        name, f"models:/{model.model_id}", run_id, dict(tags), description=card, model_id=model.model_id
    )
    return str(made.version)


def _tags(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What versions are searched by."""
    return {
        **{key: manifest[key] for key in ("base", "base_digest", "recipe", "recipe_fingerprint", "dataset", "bank")},
        "pictures": manifest["pictures"],
        "words": manifest["words"],
        "words_sha256": manifest["files"][0]["sha256"],
        "concepts": _bounded(manifest["concepts"], manifest["distinct_words"]),
        **{f"score.{key}": f"{score['mean']:.6g}" for key, score in manifest["scores"].items()},
    }


def _bounded(concepts: Iterable[str], distinct: int, length: int = TAG_LENGTH - 20) -> str:
    """The most frequent words, as many as fit, and how many more there are."""
    told: list[str] = []
    for concept in concepts:
        if len(", ".join([*told, concept])) > length:
            break
        told.append(concept)
    return ", ".join(told) + (f" and {distinct - len(told)} more" if distinct > len(told) else "")


def _card(name: str, manifest: Mapping[str, Any], description: str) -> str:
    """Markdown that MLflow shows on the version's page."""
    words = f"{manifest['words']} ({manifest['distinct_words']} distinct), width {manifest['width']}"
    facts = {
        "base": f"{manifest['base']} ({manifest['base_digest'][:12]})",
        "recipe": f"{manifest['recipe']} ({manifest['recipe_fingerprint']})",
        "dataset": manifest["dataset"],
        "bank": manifest["bank"],
        "pictures": manifest["pictures"],
        "words": words,
        **manifest["left_out"],
    }
    told = manifest["scores"]
    scores = [
        {"score": key, "before": told.get(f"{key}_step0", {}).get("mean"), **score}
        for key, score in told.items()
        if not (key.endswith("_step0") and key.removesuffix("_step0") in told)
    ]
    concepts = [{"word": word, "pictures": n} for word, n in list(manifest["concepts"].items())[:CARD_CONCEPTS]]
    parts = [
        redact(description) or f"**{manifest['words']} words learned from {manifest['pictures']} pictures.**\n",
        markdown_table([{"about": key, "told": value} for key, value in facts.items() if value]),
        markdown_table(scores),
        markdown_table(concepts),
        "```python\n"
        f'words = mlflow.pyfunc.load_model("models:/{name}@{CHAMPION}")\n'
        'words.predict(pd.DataFrame({"word": ["' + next(iter(manifest["concepts"])) + '"]}))\n```',
    ]
    card = ""
    for part in filter(None, parts):  # a part that no longer fits is left out whole
        if len(card) + len(part) < CARD_LENGTH:
            card += part + "\n"
    return card


def _same_words(client: MlflowClient, name: str, sha256: str) -> str | None:
    return next((str(v.version) for v in _all_versions(client, name) if v.tags.get("words_sha256") == sha256), None)


def _all_versions(client: MlflowClient, name: str) -> list[Published]:
    """Newest first; none for an unknown name."""
    found, page = [], None
    while page is None or page.token:
        quoted = name.replace("'", "''")
        page = client.search_model_versions(f"name = '{quoted}'", 1000, page_token=page.token if page else None)
        found += page
    aliases: dict[int, list[str]] = defaultdict(list)
    for alias, version in (client.get_registered_model(name).aliases if found else {}).items():
        aliases[int(version)].append(alias)
    versions = [
        Published(
            name,
            int(version.version),
            tuple(sorted(aliases[int(version.version)], key=lambda alias: (alias != CHAMPION, alias))),
            dict(version.tags),
            version.description or "",
            redact(client.tracking_uri),
        )
        for version in found
    ]
    return sorted(versions, key=lambda version: -version.version)


def _resolve(model: str, uri: str) -> tuple[str, str]:
    from mlflow.exceptions import MlflowException

    name, _, version = model.removeprefix("models:/").partition("/")
    name, _, alias = name.partition("@")
    client = connect(uri, make=False)
    try:
        if version:
            return name, client.get_model_version(name, version).version
        return name, client.get_model_version_by_alias(name, alias or CHAMPION).version
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    with plain_errors(uri):
        known = _all_versions(client, name)
        if not known:
            raise _no_such_name(client, uri, name)
    there = ", ".join(" ".join([str(v.version), *(f"@{alias}" for alias in v.aliases)]) for v in known)
    raise ConfigError(f"{name!r} has no {version or '@' + (alias or CHAMPION)}: its versions are {there}")


def _no_such_name(client: MlflowClient, uri: str, name: str) -> ConfigError:
    names = [model.name for model in client.search_registered_models(max_results=20)]
    there = f"the registered names are {', '.join(names)}" if names else "nothing has been published there"
    return ConfigError(f"{name!r} was never published at {redact(uri)}: {there}")


@functools.lru_cache(maxsize=4)
def _load_version(uri: str, name: str, version: str) -> Any:
    mlflow = load_mlflow()
    with plain_errors(uri), speaking_to(uri):
        return mlflow.pyfunc.load_model(f"models:/{name}/{version}")
