"""Publish a bank as a version of a registered model, find versions, look learned words up.

A version holds the table of learned words (Parquet), their vectors, an index over them and a manifest; above a size
limit, the manifest alone with the files' URIs and digests.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcpl.errors import BankMismatch, ConfigError
from mcpl.scores import lower_is_better
from mcpl.tracking import index
from mcpl.tracking.base import markdown_table
from mcpl.tracking.redaction import redact
from mcpl.tracking.results import score_table
from mcpl.tracking.server import (
    artifact_address,
    connect,
    experiment_id,
    load_mlflow,
    plain_errors,
    resolve_uri,
    speaking_to,
)

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

    from mcpl.types import BankRow

CHAMPION = "champion"
COPY_LIMIT = 1 << 30  # bytes of words that a version carries itself
ROWS_PER_GROUP = 4096  # words read together
CONCEPTS_TOLD = 1000  # distinct words listed in a manifest, the most frequent first
TAG_LENGTH = 500
CARD_LENGTH = 5000  # of a version's description
CARD_CONCEPTS = 20
CARD_PICTURES = 6
ASKED = {"image_id": "string", "word": "string", "prompt": "string", "seed": "long"}  # columns of a query
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
    better_on: Sequence[str] = (),
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
    large_tables  folder or s3:// prefix that keeps words above `copy_limit` bytes

    better_on     metrics on which the version must be better than the one that has the alias: see `promote`

    Publishing the very same words again makes no second version: it moves the alias. Raises NotPromoted, the version
    being there, where it is not better; ConfigError where `better_on` has no alias to guard.
    """
    if better_on and not alias:
        raise ConfigError(f"better on {', '.join(better_on)}: there is no alias to move, name one")
    uri = resolve_uri(tracking_uri, home)
    client = connect(uri)
    with (
        tempfile.TemporaryDirectory(prefix=".mcpl-publish-", dir=_scratch_beside(large_tables)) as scratch,
        plain_errors(uri),
        speaking_to(uri),
    ):
        written = Path(scratch, "words")
        written.mkdir()
        manifest = write_words(rows, written) | {"bank": redact(bank), "dataset": redact(dataset)}
        version = _same_words(client, name, manifest["sha256"])
        if version is None:
            if sum(entry["bytes"] for entry in manifest["files"]) > copy_limit:
                _keep_outside(written, manifest, large_tables)
            source = _save_model(Path(scratch, "model"), written, manifest)
            told = {key: redact(str(value))[:TAG_LENGTH] for key, value in (_tags(manifest) | dict(tags or {})).items()}
            card = _card(name, manifest, description, _overlays(client, run_id))
            experiment = experiment_id(client, uri, experiment, Path(home))
            version = _register(client, name, source, experiment, run_id, told, card)
        if alias and not better_on:
            client.set_registered_model_alias(name, alias, version)
        elif alias:
            _promote(client, name, int(version), alias, better_on)
        return next(found for found in _all_versions(client, name) if found.version == int(version))


def _scratch_beside(folder: str | None) -> Path | None:
    """Where large files are written, so that moving them costs nothing: a local folder's first parent that is there."""
    if folder is None or "://" in folder:
        return None
    return next((above for above in Path(folder).resolve().parents if above.is_dir()), None)


def versions(name: str, *, tracking_uri: str | None = None, home: str | Path = ".") -> list[Published]:
    """Every version of a registered model, newest first."""
    uri = resolve_uri(tracking_uri, home)
    client = connect(uri, make=False)
    with plain_errors(uri):
        found = _all_versions(client, name)
        if not found:
            raise _no_such_name(client, uri, name)
        return found


class NotPromoted(ConfigError):
    """The version is there, but another keeps the alias."""


def promote(
    name: str,
    version: int,
    better_on: Sequence[str],
    alias: str = CHAMPION,
    *,
    tracking_uri: str | None = None,
    home: str | Path = ".",
) -> None:
    """Let `NAME@alias` mean this version if it is better than the one that has the alias; NotPromoted, with the
    figures, where it is not.

    Better: on no chosen metric worse, on one better, by the means over their pictures, learned from the same dataset.
    """
    uri = resolve_uri(tracking_uri, home)
    client = connect(uri, make=False)
    with plain_errors(uri):
        _promote(client, name, version, alias, better_on)


def _promote(client: MlflowClient, name: str, version: int, alias: str, better_on: Sequence[str]) -> None:
    known = {found.version: found for found in _all_versions(client, name)}
    if version not in known:
        raise ConfigError(f"{name!r} has no version {version}: its versions are {', '.join(map(str, sorted(known)))}")
    new, now = known[version], next((found for found in known.values() if alias in found.aliases), None)
    if now is not None and now.version != version:
        _check_better(new, now, alias, better_on)
    client.set_registered_model_alias(name, alias, str(version))


def _check_better(new: Published, now: Published, alias: str, metrics: Sequence[str]) -> None:
    refused = f"version {new.version} of {new.name} is not promoted, version {now.version} stays @{alias}: "
    from_what = [one.tags.get("dataset") or "an unnamed dataset" for one in (new, now)]
    if from_what[0] != from_what[1]:
        told = " and ".join(f"{where} ({one.version})" for where, one in zip(from_what, (new, now), strict=True))
        raise NotPromoted(f"{refused}they were learned from {told}, and scores of other pictures tell nothing")
    gains = {}
    for metric in metrics:
        values = [one.tags.get(f"score.{metric}") for one in (new, now)]
        if None in values:
            without = (new, now)[values.index(None)].version
            raise NotPromoted(f"{refused}version {without} has no score {metric!r}")
        gain = float(values[0]) - float(values[1])
        gains[metric] = (-gain if lower_is_better(metric) else gain, *values)
    if any(gain < 0 for gain, *_ in gains.values()) or not any(gain > 0 for gain, *_ in gains.values()):
        figures = ", ".join(f"{metric} {ours} against {theirs}" for metric, (_, ours, theirs) in gains.items())
        where = f"both from {from_what[0]}" if new.tags.get("dataset") else "neither names the dataset it comes from"
        learned = " and ".join(f"{one.tags.get('pictures')} ({one.version})" for one in (new, now))
        raise NotPromoted(f"{refused}{figures}; {where}, pictures learned: {learned}")


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
    base: str | None = None,
    min_iou: float | None = None,
    tracking_uri: str | None = None,
    home: str | Path = ".",
) -> pd.DataFrame:
    """Learned words of a published bank: every word of the picture(s), the word(s) in every picture, or both given.

    model    NAME (its champion), NAME@alias, NAME/version, or any of them after models:/
    base     name or digest of the base that the words must belong to; BankMismatch where they do not
    min_iou  leave out pictures whose attention_iou is lower, or was not measured
    """
    import pandas as pd

    asked = {"image_id": image_id, "word": word}
    columns = {key: [value] if isinstance(value, str) else list(value) for key, value in asked.items() if value}
    if not columns:
        raise ConfigError("a look-up needs an image_id, a word, or both")
    query = pd.MultiIndex.from_product(columns.values(), names=columns.keys()).to_frame(index=False)
    words = load(model, tracking_uri=tracking_uri, home=home)
    _check_base(model, words.unwrap_python_model().manifest, base)
    found = words.predict(query)
    if min_iou is None:
        return found
    return found[[told.get("attention_iou", -1) >= min_iou for told in found.metrics]].reset_index(drop=True)


def nearest(
    model: str,
    *,
    vectors: Any = None,
    like: tuple[str, str] | None = None,
    k: int = 10,
    base: str | None = None,
    min_iou: float | None = None,
    tracking_uri: str | None = None,
    home: str | Path = ".",
) -> pd.DataFrame:
    """The k learned words of a published bank that are nearest, by cosine, with their `similarity`.

    vectors  of a word, [D] or [n, D], from anywhere that speaks the same base
    like     (image_id, word) of the bank itself, which is left out of the answer
    """
    words = load(model, tracking_uri=tracking_uri, home=home).unwrap_python_model()
    _check_base(model, words.manifest, base)
    if (vectors is None) == (like is None):
        raise ConfigError("the nearest words need either vectors or a learned word to be like")
    position = None
    if like:
        found = words.find({"image_id": like[0], "word": like[1]})
        if not len(found):
            raise ConfigError(f"{model}: picture {like[0]!r} has not taught the word {like[1]!r}")
        position = int(found[0])
        vectors = words.rows([position])[0]["vectors"]
    try:
        return words.nearest(vectors, k, min_iou, position)
    except ValueError as error:
        raise BankMismatch(str(error)) from None


def clusters(
    model: str,
    *,
    count: int = 20,
    min_pictures: int = 2,
    base: str | None = None,
    tracking_uri: str | None = None,
    home: str | Path = ".",
) -> pd.DataFrame:
    """Which words were learned from many pictures, whatever they are called: concept discovery over a bank."""
    words = load(model, tracking_uri=tracking_uri, home=home).unwrap_python_model()
    _check_base(model, words.manifest, base)
    return words.clusters(count, min_pictures)


def manifest(model: str, *, tracking_uri: str | None = None, home: str | Path = ".") -> Mapping[str, Any]:
    """What a published version says of itself: base, digest, recipe, counts, scores, files."""
    return load(model, tracking_uri=tracking_uri, home=home).unwrap_python_model().manifest


def _check_base(model: str, manifest: Mapping[str, Any], base: str | None) -> None:
    if base and base != manifest["base"] and not (len(base) >= 8 and manifest["base_digest"].startswith(base)):
        raise BankMismatch(
            f"{model} holds words of base {manifest['base']} {manifest['base_digest'][:16]}, not of {base}: words of "
            "different bases are never mixed"
        )


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


def write_words(rows: Iterable[BankRow], folder: Path) -> dict[str, Any]:
    """Write the learned words into `folder` and return their manifest. Rows may be a stream.

    words.parquet   a row per word, in the bank's order: what it is and where it comes from
    vectors.f32     all vectors, float32, one after the other
    index.faiss     for the nearest words, where there are many (`index.LEAST`)
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("image_id", pa.string()),
            ("word", pa.string()),  # the slug, without <>
            ("sentence", pa.string()),
            ("initializer", pa.string()),
            ("start", pa.int64()),  # of its vectors in vectors.f32, in vectors
            ("n_vectors", pa.int32()),
            ("norm", pa.float32()),  # mean Euclidean length of the vectors
            ("metrics", pa.map_(pa.string(), pa.float64())),  # of the picture
            ("picture_sha256", pa.string()),
            ("pictures", pa.list_(pa.string())),  # ids of a group's pictures that were learned from; null for a picture
        ]
    )
    statuses, concepts = Counter(), Counter()
    origin: dict[str, set[str]] = defaultdict(set)
    scores: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    width, written = 0, 0
    content = hashlib.sha256()

    def words() -> Iterator[dict]:
        nonlocal width, written
        for row in rows:
            statuses[row.status] += 1
            if row.status != "learned":
                continue
            for key in ("base", "base_digest", "recipe", "recipe_fingerprint"):
                origin[key].add(getattr(row.provenance, key))
            for key, value in row.metrics.items():
                if value == value:  # NaN says that nothing could be measured
                    scores[key] = [scores[key][0] + value, scores[key][1] + 1]
            metrics = sorted(row.metrics.items())
            for learned in row.learned.concepts:
                vectors = np.asarray(learned.vectors, dtype=np.float32)
                width = width or vectors.shape[1]
                if vectors.shape[1] != width:
                    raise ConfigError(f"words of different widths are never mixed: {row.id} has {vectors.shape[1]}")
                concepts[learned.concept.slug] += 1
                yield {
                    "image_id": row.id,
                    "word": learned.concept.slug,
                    "sentence": row.told_of(learned.concept.slug),
                    "initializer": learned.concept.initializer,
                    "vectors": vectors,
                    "start": written,
                    "n_vectors": len(vectors),
                    "norm": float(np.linalg.norm(vectors, axis=1).mean()),
                    "metrics": metrics,
                    "picture_sha256": row.provenance.picture_sha256,
                    "pictures": [picture.id for picture in row.used] or None,
                }
                written += len(vectors)

    table, vectors = folder / "words.parquet", folder / "vectors.f32"
    with pq.ParquetWriter(table, schema, compression="zstd") as writer, vectors.open("wb") as file:
        for batch in _batches(words(), ROWS_PER_GROUP):
            block = np.concatenate([word.pop("vectors") for word in batch]).tobytes()
            content.update(block)
            file.write(block)
            writer.write_table(pa.Table.from_pylist(batch, schema))
    if not concepts:
        told = ", ".join(f"{count} {status}" for status, count in statuses.items()) or "no rows"
        raise ConfigError(f"nothing to publish: the bank holds {told}, and none learned")
    if len(origin["base_digest"]) > 1:
        raise ConfigError(f"words of different bases are never mixed, and the bank holds {sorted(origin['base'])}")
    with table.open("rb") as file:
        table_digest = hashlib.file_digest(file, "sha256").hexdigest()
    files = [_entry(table, table_digest), _entry(vectors, content.hexdigest())]
    if index.build(table, vectors, width, folder / "index.faiss"):
        files.append(_entry(folder / "index.faiss"))
    return {
        "format": "mcpl.words",
        "format_version": 2,
        "files": files,
        "sha256": hashlib.sha256((table_digest + content.hexdigest()).encode()).hexdigest(),
        **{key: ", ".join(sorted(values)) for key, values in origin.items()},
        "pictures": statuses["learned"],
        "left_out": {status: count for status, count in statuses.items() if status != "learned"},
        "words": concepts.total(),
        "width": width,
        "distinct_words": len(concepts),
        "concepts": dict(concepts.most_common(CONCEPTS_TOLD)),
        "scores": {key: {"mean": total / n, "n": n} for key, (total, n) in sorted(scores.items())},
    }


def _entry(path: Path, digest: str = "") -> dict[str, Any]:
    """What a manifest says of a file."""
    if not digest:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "sha256": digest, "bytes": path.stat().st_size}


def _batches(items: Iterator[dict], size: int) -> Iterator[list[dict]]:
    batch: list[dict] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _keep_outside(written: Path, manifest: Mapping[str, Any], folder: str | None) -> None:
    """Move large files under names made of their digest, and note their URIs in the manifest."""
    from pyarrow import fs

    if folder is None:
        size = sum(entry["bytes"] for entry in manifest["files"]) / 1e9
        raise ConfigError(
            f"the words have {size:.1f} GB, too much for a copy in the registry: "
            "name a folder or s3:// prefix that keeps them"
        )
    root = folder.rstrip("/") if "://" in folder else Path(folder).resolve().as_uri()
    for entry in manifest["files"]:
        stem, _, suffix = entry["name"].rpartition(".")
        entry["uri"] = f"{root}/{stem}-{entry['sha256'][:16]}.{suffix}"
        filesystem, path = fs.FileSystem.from_uri(entry["uri"])
        if isinstance(filesystem, fs.LocalFileSystem):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(written / entry["name"], path)
        else:
            local = fs.LocalFileSystem()
            fs.copy_files(
                str(written / entry["name"]), path, source_filesystem=local, destination_filesystem=filesystem
            )


def _save_model(folder: Path, written: Path, manifest: Mapping[str, Any]) -> Path:
    """The model directory: lookup_model.py as it is, the manifest, and the files unless they are kept outside."""
    mlflow = load_mlflow()
    import pyarrow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    told = written / "manifest.json"
    told.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    artifacts = {"manifest": str(told)}
    artifacts |= {e["name"].partition(".")[0]: str(written / e["name"]) for e in manifest["files"] if "uri" not in e}
    needs = [f"mlflow=={mlflow.__version__}", f"pyarrow>={pyarrow.__version__.split('.')[0]}", "pandas"]
    if len(manifest["files"]) > 2:
        needs.append("faiss-cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asks for an input example, which would run the model here
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(Path(__file__).with_name("lookup_model.py")),
            artifacts=artifacts,
            signature=ModelSignature(Schema([ColSpec(kind, key, required=False) for key, kind in ASKED.items()])),
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
        "words_sha256": manifest["sha256"],
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


def _overlays(client: MlflowClient, run_id: str | None) -> list[str]:
    """Addresses, as MLflow's own pages resolve them, of the run's first pictures: where each word looks."""
    if run_id is None:
        return []
    from mlflow.exceptions import MlflowException

    try:
        found = client.list_artifacts(run_id, "overlays")
    except MlflowException:  # a run that is gone costs the card its pictures
        return []
    names = [entry.path for entry in found if entry.path.endswith(".png")]
    return [artifact_address(run_id, name) for name in names[:CARD_PICTURES]]


def _card(name: str, manifest: Mapping[str, Any], description: str, overlays: Sequence[str] = ()) -> str:
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
    scores, word = score_table(manifest["scores"]), next(iter(manifest["concepts"]))
    concepts = [{"word": slug, "pictures": n} for slug, n in list(manifest["concepts"].items())[:CARD_CONCEPTS]]
    parts = [
        redact(description) or f"**{manifest['words']} words learned from {manifest['pictures']} pictures.**\n",
        markdown_table([{"about": key, "told": value} for key, value in facts.items() if value]),
        scores and f"Means over pictures of {manifest['dataset'] or 'an unnamed dataset'}:\n\n{scores}",
        "\n".join(f"![where each word looks]({address})" for address in overlays),
        markdown_table(concepts),
        "```python\n"
        f'words = mlflow.pyfunc.load_model("models:/{name}@{CHAMPION}")\n'
        f'words.predict({{"word": ["{word}"]}})  # its vectors, from every picture\n'
        f'words.predict({{"prompt": ["a <{word}>"]}})  # PNG bytes; needs mcpl and the base\n```',
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
