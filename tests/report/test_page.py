"""The page's files: everything is there, nothing that a sentence says becomes markup, one file is bounded."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from benchmarks import synthetic_bank
from mcpl.data.bank import encode, part_name
from mcpl.data.sources import Dataset, scenes, write_dataset
from mcpl.data.storage import open_store
from mcpl.errors import ConfigError
from mcpl.orchestration import reporting
from mcpl.orchestration.reporting import write_report
from mcpl.prompts import parse
from mcpl.report import page
from mcpl.report.page import About, Page, PageRow, segments

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028 & 'a' <b>\"</title>"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(bank, dataset) of 45 rows."""
    return synthetic_bank.write(tmp_path_factory.mktemp("synthetic"), 45)


def data(script: str, call: str) -> list:
    """What a script of the page calls MCPL with."""
    text = re.search(rf"MCPL\.{call}\((.*)\);", script).group(1)
    return json.loads(f"[{text}]")


def shown(number=0, samples=None, **changes) -> PageRow:
    example = next(iter(scenes(1, seed=number)))
    row = replace(synthetic_bank.row(example, number), **changes)
    picture = Image.open(io.BytesIO(example.image)).convert("RGB")
    return PageRow(row, parse(example.text), picture, {}, samples or {}, None)


def test_a_folder_holds_every_picture_in_chunks(made, tmp_path):
    bank, dataset = made
    written = write_report(str(bank), str(dataset), str(tmp_path))
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"index.html", "data/0000.js", "data/0001.js", "data/0002.js"} <= files and "data/0003.js" not in files
    assert sum(name.startswith("pictures/") for name in files) == 45
    assert written.pictures == 45 and written.files == len(files)
    assert written.bytes == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    [told] = data((tmp_path / "index.html").read_text(), "open")
    ids = [example.id for example in Dataset.open(dataset).examples()]
    assert told["id"] == ids and told["status"].count("failed") == 1
    assert told["scores"]["attention_iou"][36] is None, "a failed picture has no scores, and its place is kept"
    place, rows = data((tmp_path / "data" / "0001.js").read_text(), "chunk")
    assert place == 1 and len(rows) == page.CHUNK
    assert rows[16]["reason"] == "the picture is made up" and "words" not in rows[16]
    word = rows[0]["words"][0]
    assert len(base64.b64decode(word["after"])) == word["side"] ** 2 == 256
    assert len(word["near"]) == 5 and all(id in ids for _, id, _ in word["near"])
    assert Image.open(tmp_path / rows[0]["picture"]).size == (32, 32)


def test_pictures_and_maps_come_back_as_they_were(made, tmp_path):
    bank, dataset = made
    write_report(str(bank), str(dataset), str(tmp_path), count=1)
    example = next(iter(Dataset.open(dataset).examples()))
    there = np.asarray(Image.open(tmp_path / "pictures" / "000000.webp").convert("RGB"))
    assert (there == np.asarray(Image.open(io.BytesIO(example.image)).convert("RGB"))).all()
    _, [row] = data((tmp_path / "data" / "0000.js").read_text(), "chunk")
    kept = np.frombuffer(base64.b64decode(row["words"][0]["after"]), np.uint8).reshape(16, 16) / 255
    expected = synthetic_bank.row(example, 0).learned.concepts[0].attention.numpy()
    assert np.abs(kept - expected).max() <= 0.5 / 255 + 0.5 / 255 + 1e-6  # rounded once by the bank, once here


def test_one_file_holds_it_all(made, tmp_path):
    bank, dataset = made
    written = write_report(str(bank), str(dataset), str(tmp_path / "one"), single=True, count=30)
    assert [path.name for path in (tmp_path / "one").rglob("*") if path.is_file()] == ["index.html"]
    text = (tmp_path / "one" / "index.html").read_text()
    assert written.bytes == len(text.encode()) < 30 * 10_000
    assert "The first 30 of 45 pictures" in text and text.count("data:image/webp;base64,") == 30
    assert not re.search(r"""(src|href)=["'](?!#)""", text) and "http:" not in text.replace(
        "http://www.w3.org/2000/svg", ""
    )


def test_what_a_sentence_says_stays_text(tmp_path):
    kept = {}
    writer = Page(kept.__setitem__, About(HOSTILE, {"recipe": HOSTILE}, note=HOSTILE))
    writer.add(replace(shown(id="x", text=HOSTILE), sentence=None))
    writer.add(shown(1, status="failed", learned=None, reason=HOSTILE, metrics={}))
    writer.finish()
    html, chunk = kept["index.html"].decode(), kept["data/0000.js"].decode()
    assert "<" not in chunk and "\u2028" not in chunk
    assert html.count("<script") == html.count("</script>") == 2 and "<img" not in html.split("<script")[0]
    assert "<title>&lt;/script&gt;" in html
    [told] = data(html, "open")
    assert told["text"][0] == told["note"] == HOSTILE and data(chunk, "chunk")[1][1]["reason"] == HOSTILE


def test_numbers_that_are_none_are_told_as_none(tmp_path):
    kept = {}
    writer = Page(kept.__setitem__, About("t", {}))
    writer.add(shown(metrics={"iou": float("nan"), "loss": float("inf"), "ok": 1 / 3}, seconds=float("nan")))
    writer.add(shown(1, metrics={"late": 1.0}))
    writer.finish()
    [told] = data(kept["index.html"].decode(), "open")
    assert told["scores"] == {"iou": [None, None], "loss": [None, None], "ok": [0.33333, None], "late": [None, 1.0]}


def test_the_page_knows_which_scores_are_better_when_smaller():
    kept = {}
    writer = Page(kept.__setitem__, About("t", {}))
    writer.add(shown(metrics={"leak_step0": 0.5, "leak": 0.1, "right_object": 0.9, "prompt_similarity": 0.2}))
    writer.finish()
    [told] = data(kept["index.html"].decode(), "open")
    assert told["smaller"] == ["leak_step0", "leak", "prompt_similarity"]


def test_samples_stand_side_by_side_and_large_pictures_are_shrunk(tmp_path):
    kept = {}
    writer = Page(kept.__setitem__, About("t", {}))
    row = shown(samples={"heart": np.full((3, 640, 640, 3), 9, np.uint8)})
    slug = row.row.learned.concepts[0].concept.slug
    row = replace(row, samples={slug: row.samples["heart"]}, picture=Image.new("RGB", (900, 900)))
    writer.add(row)
    writer.finish()
    _, [told] = data(kept["data/0000.js"].decode(), "chunk")
    name, count = told["words"][0]["samples"]
    assert count == 3 and Image.open(io.BytesIO(kept[name])).size == (768, 256)
    assert told["words"][1]["samples"] is None and told["together"] is None
    assert Image.open(io.BytesIO(kept[told["picture"]])).size == (page.SIDE, page.SIDE)


def test_segments_keep_words_and_their_objects_apart():
    parts = segments(parse("A brown <bear>, on a rolling <board:toy> at times"))
    assert parts == ["A", ["brown", 0, 0], ["<bear>", 0, 1], ", on a", ["rolling", 1, 0], ["<board>", 1, 1], "at times"]


def test_an_earlier_page_is_replaced_and_other_files_are_not_touched(made, tmp_path):
    bank, dataset = made
    write_report(str(bank), str(dataset), str(tmp_path))
    (tmp_path / "notes.txt").write_text("mine")
    write_report(str(bank), str(dataset), str(tmp_path), count=3)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [f"{i:06d}.webp" for i in range(3)]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    for _ in range(2):
        with pytest.raises(ConfigError, match="not empty"):
            write_report(str(bank), str(dataset), str(tmp_path / "other"))
        (tmp_path / "other" / "index.html").write_text("<h1>my own page</h1>")


def test_a_picture_that_the_dataset_lacks_is_still_told_of(tmp_path):
    examples = list(scenes(3))
    write_dataset(examples[:2], tmp_path / "dataset")
    rows = [synthetic_bank.row(example, number) for number, example in enumerate(examples)]
    open_store(tmp_path / "bank").put(part_name(0), encode(rows[::-1]))
    write_report(str(tmp_path / "bank"), str(tmp_path / "dataset"), str(tmp_path / "page"))
    [told] = data((tmp_path / "page" / "index.html").read_text(), "open")
    assert told["id"] == [example.id for example in examples], "the dataset's order"
    _, kept = data((tmp_path / "page" / "data" / "0000.js").read_text(), "chunk")
    assert [row["picture"] is None for row in kept] == [False, False, True]


def test_a_page_of_a_few_pictures_reads_and_compares_no_others(made, tmp_path, monkeypatch):
    bank, dataset = made
    decoded, compared = [], []
    rows, nearest = reporting.Bank.rows, reporting.nearest
    monkeypatch.setattr(
        reporting.Bank, "rows", lambda self, *more: (decoded.append(row) or row for row in rows(self, *more))
    )
    monkeypatch.setattr(reporting, "nearest", lambda words, n: compared.extend(words) or nearest(words, n))
    written = write_report(str(bank), str(dataset), str(tmp_path), count=4)
    assert (written.pictures, written.words) == (4, 88), "the whole bank is told of"
    assert len(decoded) == 4 and len(compared) == 8
    _, told = data((tmp_path / "data" / "0000.js").read_text(), "chunk")
    shown = data((tmp_path / "index.html").read_text(), "open")[0]["id"]
    assert all(id in shown for row in told for word in row["words"] for _, id, _ in word["near"])
