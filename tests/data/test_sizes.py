"""Files too large to be read: told with their reason from every kind of source, before a byte of them is read."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mcpl.data import multi_concept, pictures, sources
from mcpl.data.schema import DATASET
from mcpl.data.sources import SOURCES, Rejected, build_dataset, picture_and_sentence, validate
from mcpl.data.storage import LocalStore
from mcpl.errors import ConfigError, ExampleError

from .conftest import png, tar_bytes

REASON = "the file is too large: more than 2 kB"
SMALL = png(255, mode="L")
LARGE = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(LARGE, "PNG")
LARGE = LARGE.getvalue()
LONG = b"a <cat> " * 300


@pytest.fixture(autouse=True)
def read(monkeypatch) -> list[int]:
    """The bytes of every read, under a small limit."""
    for module in (pictures, sources, multi_concept):
        monkeypatch.setattr(module, "MAX_BYTES", 2000)
    asked, get = [], LocalStore.get

    def counting(store, name: str) -> bytes:
        data = get(store, name)
        asked.append(len(data))
        return data

    monkeypatch.setattr(LocalStore, "get", counting)
    return asked


FOLDER = {"large.png": LARGE, "large.txt": b"a <cat>", "long.png": SMALL, "long.txt": LONG}
FOLDER |= {"small.png": SMALL, "small.txt": b"a <cat>"}
MEMBERS = FOLDER | {"large.mask.cat.png": SMALL, "small.mask.cat.png": LARGE}
AUTHORS = {
    "unmasked/large a cat.png": LARGE,
    "unmasked/twin a cat.png": LARGE,  # of one size: they would be compared
    "unmasked/small a cat.png": SMALL,
    "masked_cat/small a cat.png": LARGE,
}
SET = {
    "folder": (FOLDER, {"large.png": REASON, "long.png": REASON}),
    "webdataset": (
        {"0.tar": tar_bytes(MEMBERS)},
        {"0/large": REASON, "0/long": REASON, "0.tar!": f"unusable mask: {REASON}"},
    ),
    "multi-concept-dataset": (
        {f"cat_1/{name}": data for name, data in AUTHORS.items()},
        {
            "cat_1/large a cat": REASON,
            "cat_1/twin a cat": REASON,
            "cat_1/masked_cat/small a cat.png": f"unusable mask: {REASON}",
        },
    ),
}


@pytest.mark.parametrize("kind", SET)
def test_a_file_that_is_too_large_is_rejected_unread(kind, tmp_path, read):
    files, expected = SET[kind]
    for name, data in files.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    dataset = SOURCES[kind](tmp_path / "source")
    told = {item.id: item.reason for item in dataset if isinstance(item, Rejected)}
    for place, reason in expected.items():
        assert [r for id, r in told.items() if id.startswith(place)] == [reason]
    (row,) = dataset.examples()
    assert "small" in row.id and row.image == SMALL and not row.masks
    assert max(read, default=0) <= 2000
    assert validate(dataset).faults.lost == build_dataset(dataset, tmp_path / "built").faults.lost == 2


def test_one_picture_that_is_too_large_is_no_dataset(tmp_path, read):
    (tmp_path / "large.png").write_bytes(LARGE)
    (tmp_path / "large.txt").write_text("a <cat>")
    with pytest.raises(ConfigError, match=REASON):
        SOURCES["picture"](tmp_path / "large.png")
    assert not read


@pytest.mark.parametrize("kind", ["parquet", "hugging-face"])
def test_a_cell_that_is_too_large_is_a_rejected_row(kind, tmp_path):
    rows = [{"image": {"bytes": data, "path": None}, "image_id": id, "text": "a <cat>"} for id, data in
            {"large": LARGE, "small": SMALL}.items()]  # fmt: skip
    table = pa.Table.from_pylist(rows, DATASET)
    if kind == "hugging-face":
        table = table.drop_columns(["image_id"])
    pq.write_table(table, tmp_path / "set.parquet")
    report = build_dataset(SOURCES[kind](tmp_path / "set.parquet"), tmp_path / "built")
    assert (report.rows, [fault.reason for fault in report.faults.first]) == (1, [REASON])


def test_a_photo_that_is_too_large_is_one_clear_line(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(LARGE)
    with pytest.raises(ExampleError, match=rf"photo\.png: {REASON}$"):
        picture_and_sentence(path, "a <cat>")
