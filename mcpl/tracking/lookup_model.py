"""The model that a registry version holds: learned words, looked up by picture and by word, by nearness, and drawn.

MLflow stores this page as it is (models from code, no pickle) and runs it where mcpl may not be installed: look-ups
need pyarrow, pandas and numpy only, and faiss where there are many words. Pictures from prompts need mcpl itself and
the base that the words were learned with, which is loaded when the first prompt arrives: from MCPL_BASE where that is
set (a directory: nothing is downloaded), else by the name in the manifest.
"""

import contextlib
import hashlib
import io
import json
import os
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

KEYS = ("image_id", "word")
ANSWER = ("image_id", "word", "sentence", "initializer", "vectors", "norm", "metrics", "pictures")
DRAWN = ("prompt", "seed", "image_ids", "png")
PROBED = 64  # lists of the index that a query looks into
RANKED = 500  # words that the index proposes and the vectors themselves rank
FURTHEST = 64 * RANKED  # so many where pictures with low scores are left out: 100 MB of width 768
BLOCK = 16_384  # words compared at a time: 50 MB of width 768
SCORES = ("right_object", "attention_iou", "assignment")  # which of a word's rows is drawn: the best, in this order
CONSIDERED = 256  # rows of a word among which the best is looked for


class WordTable(mlflow.pyfunc.PythonModel):
    """`predict` takes rows with `image_id`, `word` (`bear` or `<bear>`) or both, and returns the learned words; or
    rows with a `prompt` (`a <bear> on a table`; `seed` and `image_id` are optional), and returns PNG bytes."""

    def load_context(self, context):
        self.manifest = json.loads(Path(context.artifacts["manifest"]).read_text())
        files = {e["name"]: _local(e, context.artifacts.get(_stem(e["name"]))) for e in self.manifest["files"]}
        self._file = pq.ParquetFile(files["words.parquet"], memory_map=True)
        keys = self._file.read(columns=[*KEYS, "start", "n_vectors", "pictures"]).combine_chunks()
        self._keys = keys.select(KEYS)
        grouped = keys.select(["image_id", "pictures"]).filter(pc.is_valid(keys["pictures"])).to_pylist()
        self._group_of = {picture: row["image_id"] for row in grouped for picture in row["pictures"]}
        self._places, self._counts = (keys[name].to_numpy() for name in ("start", "n_vectors"))
        self._stored = files["vectors.f32"].open("rb")
        self._index_file, self._index, self._base = files.get("index.faiss"), None, None
        meta = self._file.metadata
        self._starts = [0]  # first row of each row group, and the end
        for group in range(meta.num_row_groups):
            self._starts.append(self._starts[-1] + meta.row_group(group).num_rows)

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:
        """One row per learned word found, with `query`, the index of the input row that asked for it; for prompts
        one row each, with its picture."""
        if "prompt" in model_input.columns:
            return self.draw(model_input)
        asked = [key for key in KEYS if key in model_input.columns]
        if not asked:
            raise ValueError(
                f"a query has a column image_id, word or both, or a prompt, not {list(model_input.columns)}"
            )
        lists = [key for key in asked if model_input[key].map(pd.api.types.is_list_like).any()]
        if lists:  # a plain dict of lists arrives as one row that holds the lists
            model_input = model_input.explode(lists, ignore_index=True)
        hits = [self.find({key: row[key] for key in asked}) for _, row in model_input.iterrows()]
        positions = sorted({int(position) for found in hits for position in found})
        answers = dict(zip(positions, self.rows(positions), strict=True))
        rows = [
            {"query": index, **answers[int(position)]}
            for index, found in zip(model_input.index, hits, strict=True)
            for position in found
        ]
        return pd.DataFrame(rows, columns=["query", *ANSWER])

    def find(self, query):
        """Positions of the rows that match every given key."""
        mask = None
        for key, value in query.items():
            if _absent(value):
                continue
            value = str(value).strip("<>") if key == "word" else str(value)
            if key == "image_id":  # a picture of a group is found by its own name too
                value = self._group_of.get(value, value)
            match = pc.equal(self._keys[key], value)
            mask = match if mask is None else pc.and_(mask, match)
        if mask is None:
            raise ValueError("a query names neither an image_id nor a word")
        return pc.indices_nonzero(mask).to_numpy()

    def rows(self, positions):
        """The rows at sorted positions; only the row groups that hold one are read."""
        rows, at = [], 0
        for group, (start, end) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            inside = []
            while at < len(positions) and positions[at] < end:
                inside.append(positions[at] - start)
                at += 1
            if inside:
                columns = [name for name in ANSWER if name != "vectors"]
                rows += self._file.read_row_group(group, columns=columns).take(pa.array(inside)).to_pylist()
        for row, position in zip(rows, positions, strict=True):
            row["vectors"] = self._vectors(position).tolist()
            row["metrics"] = dict(row["metrics"] or ())
        return rows

    def nearest(self, vectors, k=10, min_iou=None, without=None) -> pd.DataFrame:
        """The k learned words nearest to a vector [D], or to the mean of several [n, D], by cosine.

        min_iou  leave out pictures whose attention_iou is lower, or was not measured; fewer than k are found where
                 too few of the FURTHEST nearest reach it
        without  position of a row to leave out: the word itself
        """
        asked = np.asarray(vectors, np.float32)
        asked = asked.mean(0) if asked.ndim == 2 else asked
        if asked.shape != (self.manifest["width"],):
            width = self.manifest["width"]
            raise ValueError(f"words of base {self.manifest['base']} are {width} wide, the one asked for {len(asked)}")
        direction, kept = asked / max(np.linalg.norm(asked), 1e-12), []
        for proposed in (RANKED, FURTHEST) if min_iou is not None else (RANKED,):
            kept = self._kept(*self._ranked(direction, max(proposed, k + 1)), k, min_iou, without)
            if len(kept) == k:
                break
        return pd.DataFrame(kept, columns=["similarity", *ANSWER])

    def _kept(self, positions, near, k, min_iou, without):
        """The first k of ranked positions that may be answered, as rows."""
        kept, place, size = [], 0, k
        while place < len(positions) and len(kept) < k:
            ranked = zip(positions[place : place + size], near[place : place + size], strict=True)
            place, size = place + size, 2 * size  # many at a time where few are good: a row costs its row group
            block = [(p, s) for p, s in ranked if p != without]
            order = sorted(range(len(block)), key=lambda i: block[i][0])
            answers = dict(zip(order, self.rows([block[i][0] for i in order]), strict=True))
            found = [{"similarity": float(block[i][1]), **answers[i]} for i in range(len(block))]
            kept += [row for row in found if min_iou is None or row["metrics"].get("attention_iou", -1) >= min_iou]
        return kept[:k]

    def clusters(self, count=20, min_pictures=2, seed=0) -> pd.DataFrame:
        """Words that mean the like, whatever they are called: k-means over directions, most pictures first.

        One row each: pictures, words, the most frequent names, how alike its words are (mean cosine to the centre),
        and the pictures nearest to the centre.
        """
        from sklearn.cluster import KMeans

        total = len(self._places)
        drawn = np.sort(np.random.default_rng(seed).choice(total, min(total, 50 * count + 1000), replace=False))
        kmeans = KMeans(min(count, len(drawn)), n_init=4, random_state=seed).fit(self._unit(drawn))
        centres = kmeans.cluster_centers_ / np.maximum(
            np.linalg.norm(kmeans.cluster_centers_, axis=1, keepdims=True), 1e-12
        )
        own, near = np.empty(total, np.int32), np.empty(total, np.float32)
        for block in _blocks(total):
            likeness = self._unit(block) @ centres.T
            own[block], near[block] = likeness.argmax(1), likeness.max(1)
        told = []
        for cluster in range(len(centres)):
            members = np.flatnonzero(own == cluster)
            keys = self._keys.take(pa.array(members))
            pictures = len(pc.unique(keys["image_id"]))
            if pictures < min_pictures:
                continue
            names = pc.value_counts(keys["word"]).to_pylist()
            central = members[np.argsort(-near[members])[:3]]
            told.append(
                {
                    "pictures": pictures,
                    "words": len(members),
                    "names": {n["values"]: n["counts"] for n in sorted(names, key=lambda n: -n["counts"])[:5]},
                    "likeness": float(near[members].mean()),
                    "examples": self._keys["image_id"].take(pa.array(central)).to_pylist(),
                }
            )
        columns = ["pictures", "words", "names", "likeness", "examples"]
        return pd.DataFrame(sorted(told, key=lambda c: -c["pictures"]), columns=columns)

    def draw(self, asked: pd.DataFrame) -> pd.DataFrame:
        """A picture for each row's `prompt`. `image_id` says whose words are meant; else each word's best are."""
        rows = []
        for row in asked.to_dict(orient="records"):
            seed = 0 if _absent(row.get("seed")) else int(row["seed"])
            whose, png = self._drawn(str(row["prompt"]), row.get("image_id"), seed)
            rows.append({"prompt": row["prompt"], "seed": seed, "image_ids": whose, "png": png})
        return pd.DataFrame(rows, columns=list(DRAWN))

    def _drawn(self, prompt, image_id, seed):
        from mcpl.errors import MCPLError

        try:
            return self._picture(prompt, image_id, seed)
        except MCPLError as error:  # said to whoever asked, also over HTTP, as the sentence that it is
            raise mlflow.exceptions.MlflowException.invalid_parameter_value(str(error)) from None

    def _picture(self, prompt, image_id, seed):
        import torch
        from PIL import Image

        from mcpl.evaluation.sampling import generate
        from mcpl.models import catalogue
        from mcpl.prompts import parse

        if self._base is None:
            where = os.environ.get("MCPL_BASE") or self.manifest["base"]
            self._base = catalogue.load(where, expect_digest=self.manifest["base_digest"])
        sentence, whose, vectors = parse(prompt), {}, {}
        for concept in sentence.concepts:
            position = self._best(concept.slug, image_id)
            whose[concept.slug] = self._keys["image_id"][position].as_py()
            vectors[concept.slug] = torch.from_numpy(self._vectors(position))
        picture = generate(self._base, sentence, vectors, 1, seed)[0]
        buffer = io.BytesIO()
        Image.fromarray(picture.numpy()).save(buffer, "PNG")
        return whose, buffer.getvalue()

    def _best(self, word, image_id):
        """Position of a word's row: of the picture that is asked for, else the one that scored best."""
        from mcpl.errors import ConfigError

        found = self.find({"word": word, "image_id": image_id})
        if not len(found):
            where = "" if _absent(image_id) else f" from picture {image_id}"
            known = ", ".join(list(self.manifest["concepts"])[:8])
            raise ConfigError(f"<{word}> was never learned{where}; there are {known}")
        positions = [int(position) for position in found[:CONSIDERED]]
        scored = zip(positions, self.rows(positions), strict=True)
        return max(scored, key=lambda one: [one[1]["metrics"].get(name, -1.0) for name in SCORES])[0]

    def _ranked(self, direction, count):
        """Positions of the nearest words and their cosines, nearest first: exact over what the index proposes."""
        total = len(self._places)
        if self._index_file is None:
            near = np.concatenate([self._unit(block) @ direction for block in _blocks(total)])
            proposed = np.argpartition(-near, min(count, total) - 1)[:count]
            near = near[proposed]
        else:
            proposed = self._opened().search(direction[None], count)[1][0]
            proposed = np.sort(proposed[proposed >= 0])
            near = self._unit(proposed) @ direction
        order = np.argsort(-near, kind="stable")
        return proposed[order].tolist(), near[order]

    def _opened(self):
        if self._index is None:
            import faiss

            self._index = faiss.read_index(str(self._index_file))  # read whole: its mapping flags do nothing here
            self._index.nprobe = PROBED
        return self._index

    def _unit(self, positions):
        """Mean vectors of words, at length 1. [words, D]"""
        counts = self._counts[positions]
        means = self._vectors(positions)
        if (counts != 1).any():
            means = np.add.reduceat(means, np.cumsum(counts) - counts) / counts[:, None].astype(np.float32)
        return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)

    def _vectors(self, positions):
        """Vectors of a word, or of several at sorted positions, one after the other. [vectors, D]

        They are read, not mapped: touching a word of a mapped file lets Linux map up to a megabyte around it.
        """
        starts, counts = np.atleast_1d(self._places[positions], self._counts[positions])
        vectors = np.empty((counts.sum(), self.manifest["width"]), np.float32)
        cuts = np.cumsum(counts)[:-1]
        if not len(starts):
            return vectors
        if starts[-1] + counts[-1] - starts[0] == len(vectors):  # neighbours, as in a block: read at once
            starts, cuts = starts[:1], cuts[:0]
        file, size, parts = self._stored.fileno(), vectors.strides[0], np.split(vectors, cuts)
        for part, start in zip(parts, starts, strict=True):
            left, place = part.reshape(-1).view(np.uint8), start * size
            while len(left):  # Linux reads 2 GiB at most at a time
                read = os.preadv(file, [left], place)
                if not read:
                    raise ValueError(f"{self._stored.name} is cut short")
                left, place = left[read:], place + read
        return vectors


def _absent(value):
    """Not asked for: absent, NaN or empty."""
    return value is None or value != value or value == ""


def _blocks(total):
    return (np.arange(place, min(place + BLOCK, total)) for place in range(0, total, BLOCK))


def _stem(name):
    return name.partition(".")[0]


def _local(entry, copy):
    """A file's path on this machine: the version's own copy, or, above the size limit, what its manifest names."""
    if copy is not None:
        return Path(copy)
    filesystem, path = pyarrow.fs.FileSystem.from_uri(entry["uri"])
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        _check(Path(path), entry)
        return Path(path)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcpl-words"
    kept = cache / f"{entry['sha256']}-{entry['name']}"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        coming = kept.with_suffix(f".{os.getpid()}")
        with filesystem.open_input_stream(path) as stream, coming.open("wb") as file:
            while block := stream.read(1 << 22):
                file.write(block)
        os.replace(coming, kept)
    _check(kept, entry)
    return kept


def _check(path, entry):
    """The file is the one that was published. Said once for a file that has not changed: a note lies beside it."""
    state = path.stat()
    seen = f"{entry['sha256']} {state.st_size} {state.st_mtime_ns}"
    note = path.with_name(path.name + ".checked")
    if note.exists() and note.read_text() == seen:
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != entry["sha256"]:
        raise ValueError(f"{entry.get('uri', path)} is not the file that was published: its sha256 differs")
    with contextlib.suppress(OSError):  # a folder that may only be read
        note.write_text(seen)


mlflow.models.set_model(WordTable())
