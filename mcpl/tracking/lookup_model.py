"""The model that a registry version holds: a table of learned words, looked up by picture and by word.

MLflow stores this page as it is (models from code, no pickle) and runs it where mcpl may not be installed: it needs
pyarrow, pandas and numpy only.
"""

import hashlib
import json
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

KEYS = ("image_id", "word")
ANSWER = ("image_id", "word", "sentence", "initializer", "vectors", "norm", "metrics")


class WordTable(mlflow.pyfunc.PythonModel):
    """`predict` takes rows with `image_id`, `word` (`bear` or `<bear>`) or both, and returns the learned words."""

    def load_context(self, context):
        self.manifest = json.loads(Path(context.artifacts["manifest"]).read_text())
        self._file = _open(self.manifest["files"][0], context.artifacts.get("words"))
        self._keys = self._file.read(columns=list(KEYS)).combine_chunks()
        meta = self._file.metadata
        self._starts = [0]  # first row of each row group, and the end
        for group in range(meta.num_row_groups):
            self._starts.append(self._starts[-1] + meta.row_group(group).num_rows)

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:
        """One row per learned word found, with `query`, the index of the input row that asked for it."""
        asked = [key for key in KEYS if key in model_input.columns]
        if not asked:
            raise ValueError(f"a query has a column image_id, word or both, not {list(model_input.columns)}")
        lists = [key for key in asked if model_input[key].map(pd.api.types.is_list_like).any()]
        if lists:  # a plain dict of lists arrives as one row that holds the lists
            model_input = model_input.explode(lists, ignore_index=True)
        hits = [self._find({key: row[key] for key in asked}) for _, row in model_input.iterrows()]
        positions = sorted({int(position) for found in hits for position in found})
        answers = dict(zip(positions, self._rows(positions), strict=True))
        rows = [
            {"query": index, **answers[int(position)]}
            for index, found in zip(model_input.index, hits, strict=True)
            for position in found
        ]
        return pd.DataFrame(rows, columns=["query", *ANSWER])

    def _find(self, query):
        """Positions of the rows that match every given key."""
        mask = None
        for key, value in query.items():
            if value is None or value != value or value == "":  # absent, NaN or empty: not asked for
                continue
            value = str(value).strip("<>") if key == "word" else str(value)
            match = pc.equal(self._keys[key], value)
            mask = match if mask is None else pc.and_(mask, match)
        if mask is None:
            raise ValueError("a query names neither an image_id nor a word")
        return pc.indices_nonzero(mask).to_numpy()

    def _rows(self, positions):
        """The rows at sorted positions; only the row groups that hold one are read."""
        rows, at = [], 0
        for group, (start, end) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            inside = []
            while at < len(positions) and positions[at] < end:
                inside.append(positions[at] - start)
                at += 1
            if inside:
                columns = [*ANSWER, "n_vectors"]
                rows += self._file.read_row_group(group, columns=columns).take(pa.array(inside)).to_pylist()
        return [self._answer(row) for row in rows]

    @staticmethod
    def _answer(row):
        flat, count = row["vectors"], row.pop("n_vectors")
        width = len(flat) // count
        row["vectors"] = [flat[i * width : (i + 1) * width] for i in range(count)]
        row["metrics"] = dict(row["metrics"] or ())
        return row


def _open(entry, copy):
    """The word table: the version's own copy, or, above the size limit, the file that its manifest names."""
    if copy is not None:
        return pq.ParquetFile(copy, memory_map=True)
    filesystem, path = pyarrow.fs.FileSystem.from_uri(entry["uri"])
    digest = hashlib.sha256()
    with filesystem.open_input_stream(path) as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    if digest.hexdigest() != entry["sha256"]:
        raise ValueError(f"{entry['uri']} is not the file that was published: its sha256 differs")
    return pq.ParquetFile(path, filesystem=filesystem)


mlflow.models.set_model(WordTable())
