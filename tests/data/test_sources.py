from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mcpl.data import sources
from mcpl.data.dataset import UNFINISHED, ParquetDataset
from mcpl.data.sources import SOURCES, Dataset, Rejected, ShardRef, checked, detect, write_dataset
from mcpl.data.storage import open_store
from mcpl.errors import ConfigError, ExampleError
from mcpl.types import Example

from .conftest import png, tar_bytes


def examples(count: int, start: int = 0) -> list[Example]:
    return [
        Example(
            f"p{i}", png((i % 256, 0, 0)), f"a red <ball> number {i}", {"ball": png(255, mode="L")} if i % 2 else {}
        )
        for i in range(start, start + count)
    ]


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path) -> str:
    return str(tmp_path / "set") if request.param == "local" else request.getfixturevalue("bucket") + "/a/set"


def write_folder(folder, lines: dict | None = None) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("one.png", "two.png"):
        (folder / name).write_bytes(png())
    lines = lines if lines is not None else {"one.png": "a <cat>", "two.png": "a <dog>"}
    text = "\n".join(json.dumps({"file_name": name, "text": text}) for name, text in lines.items())
    (folder / "metadata.jsonl").write_text(text + "\n")
    return str(folder)


def hugging_face_table(count: int, text: str = "caption") -> pa.Table:
    """As `datasets` saves pictures: no ids, a caption, the features in the metadata, a further column."""
    rows = [
        {"image": {"bytes": png((i, 0, 0)), "path": f"{i}.png"}, text: f"a <cat> of {i}", "label": i}
        for i in range(count)
    ]
    features = {"info": {"features": {"image": {"_type": "Image"}, text: {"dtype": "string", "_type": "Value"}}}}
    return pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(features)})


def write_tar(path, members: dict[str, bytes]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members))
    return str(path)


# -- every source keeps the same promises ------------------------------------------------------------------------


def make_source(kind: str, folder) -> str:
    if kind == "parquet":
        return write_dataset(examples(3), folder / "set").uri
    if kind == "hugging-face":
        pq.write_table(hugging_face_table(5), folder / "train-00000-of-00001.parquet", row_group_size=2)
        return str(folder)
    if kind == "webdataset":
        write_tar(folder / "set" / "a.tar", {"1.png": png(), "1.txt": b"a <cat>", "2.png": png(), "2.txt": b"a <dog>"})
        return str(folder / "set")
    if kind == "folder":
        return write_folder(folder / "photos")
    if kind == "picture":
        (folder / "one.png").write_bytes(png())
        (folder / "one.txt").write_text("a <cat>\n")
        return str(folder / "one.png")
    group = folder / "authors" / "cat_dog" / "unmasked"
    group.mkdir(parents=True)
    (group / "a cat and a dog.png").write_bytes(png())
    return str(folder / "authors")


@pytest.mark.parametrize("kind", SOURCES)
def test_each_source_is_recognised_read_and_opened(kind, tmp_path):
    uri = make_source(kind, tmp_path)
    assert detect(uri) == kind
    read = [item for item in SOURCES[kind](uri) if isinstance(item, Example)]
    dataset = Dataset.open(uri)
    assert dataset.kind == kind and dataset.count == len(read) > 0
    assert list(dataset.examples()) == read
    assert dataset.ids() == [example.id for example in read]
    assert all("<" in example.text for example in read)
    shards = dataset.shards(1)
    assert [e for ref in shards[1:] for e in dataset.only(shards[1:]).read(ref)] == read[1:], "and in parts"
    assert 0 < dataset.weigh(shards[0]) <= dataset.bytes
    assert Dataset.open(uri).digest == dataset.digest
    sources.info(uri)
    assert sources.validate(uri).ok


@pytest.mark.parametrize("kind", SOURCES)
def test_each_source_says_in_one_line_that_nothing_is_there(kind, tmp_path):
    for use in (Dataset.open, detect):
        with pytest.raises(ConfigError, match="nothing is at") as caught:
            use(str(tmp_path / "absent"))
        assert "\n" not in str(caught.value)


# -- Parquet -----------------------------------------------------------------------------------------------------


def test_a_dataset_comes_back_in_order_from_its_shards(root):
    rows = examples(25)
    report = write_dataset(rows, root, row_group=4, rows_per_file=10)
    assert (report.rows, report.files) == (25, 3)
    dataset = Dataset.open(root)
    assert dataset.count == 25 and dataset.columns == ("image", "image_id", "text", "masks", "truth")
    shards = dataset.shards(3)
    assert shards[:3] == [
        ShardRef("data-00000.parquet", 0, 0, 3),
        ShardRef("data-00000.parquet", 0, 3, 4),
        ShardRef("data-00000.parquet", 1, 0, 3),
    ]
    assert sum(shard.rows for shard in shards) == 25
    assert [example for shard in shards for example in dataset.read(shard)] == rows
    assert dataset.read(shards[-1]) == rows[-1:]
    dataset.check_ids()


def test_planning_reads_no_picture_and_a_shard_only_its_row_group(root, monkeypatch):
    write_dataset(examples(40), root, row_group=10)
    read = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *a, **k: pytest.fail("read a whole file"))
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda f, i, *a: read.append(i) or original(f, i, *a))
    dataset = Dataset.open(root)
    shards = dataset.shards(5)
    assert read == []
    assert [e.id for e in dataset.read(shards[4]) + dataset.read(shards[5])] == [f"p{i}" for i in range(20, 30)]
    assert read == [2]


def test_the_digest_follows_the_content_not_the_place(tmp_path):
    rows = examples(6)
    digests = [Dataset.open(write_dataset(rows, tmp_path / name).uri).digest for name in "ab"]
    assert digests[0] == digests[1]
    other = [*rows[:-1], dataclasses.replace(rows[-1], image=rows[-1].image[:-1] + b"\0")]
    assert Dataset.open(write_dataset(other, tmp_path / "c").uri).digest != digests[0]


def test_one_parquet_file_is_a_dataset(root):
    write_dataset(examples(3), root)
    dataset = Dataset.open(f"{root}/data-00000.parquet")
    assert dataset.count == 3 and [e.id for e in dataset.examples()] == ["p0", "p1", "p2"]


def table(**columns) -> pa.Table:
    image = pa.array([{"bytes": png(), "path": None}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    return pa.table({"image": image, "image_id": ["x"], "text": ["a <cat>"]} | columns)


def test_missing_columns_are_named_with_what_is_there(tmp_path):
    pq.write_table(table().drop_columns(["image_id", "text"]).append_column("label", [["a"]]), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"a\.parquet lacks the columns text; it has image, label"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize(
    ("column", "values"), [("image", ["a path"]), ("text", [3]), ("image", [{"path": "x.png"}]), ("text", [["a", "b"]])]
)
def test_columns_of_another_type_are_refused(tmp_path, column, values):
    pq.write_table(table(**{column: pa.array(values)}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=f"column {column} is"):
        Dataset.open(tmp_path)


def test_plain_bytes_whole_numbers_and_nulls_are_read(tmp_path):
    pq.write_table(table(image=[png()], image_id=[7]), tmp_path / "a.parquet")
    assert [(e.id, e.image) for e in Dataset.open(tmp_path).examples()] == [("7", png())]
    nulls = table(image=pa.nulls(1, pa.struct([("bytes", pa.binary())])), text=pa.nulls(1, pa.string()))
    pq.write_table(nulls, tmp_path / "a.parquet")
    assert [(e.id, e.image, e.text) for e in Dataset.open(tmp_path).examples()] == [("x", b"", "")]


def test_doubled_and_empty_ids_are_refused_by_name(tmp_path):
    rows = examples(4)
    ids = pa.array([row.id for row in rows[:2]] * 2)
    whole = pa.concat_tables([table()] * 4).set_column(1, "image_id", ids)
    pq.write_table(whole, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="2 rows have an image_id that is empty or taken .'p0', 'p1'."):
        Dataset.open(tmp_path).check_ids()
    pq.write_table(table(image_id=[""]), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="1 rows"):
        Dataset.open(tmp_path).check_ids()


def test_a_damaged_file_and_an_empty_dataset_are_refused_by_name(tmp_path):
    write_dataset(examples(20), tmp_path, rows_per_file=10)
    path = tmp_path / "data-00001.parquet"
    whole = path.read_bytes()
    for keep in (0, 7, len(whole) // 2):
        path.write_bytes(whole[:keep])
        with pytest.raises(ConfigError, match="data-00001.parquet is cut short or damaged"):
            Dataset.open(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    pq.write_table(table().slice(0, 0), empty / "a.parquet")
    with pytest.raises(ConfigError, match="no rows"):
        Dataset.open(empty)


def test_hidden_and_underscored_parquet_is_no_data(tmp_path):
    write_dataset(examples(3), tmp_path)
    for name in ("_temporary.parquet", ".hidden.parquet"):
        (tmp_path / name).write_bytes(b"junk")
    assert Dataset.open(tmp_path).count == 3


# -- Hugging Face's Parquet -----------------------------------------------------------------------------------------


def put_parquet(root: str, name: str, rows: pa.Table, **options) -> None:
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, **options)
    open_store(root).put(name, buffer.getvalue())


def test_hugging_faces_parquet_gets_ids_and_sentences(root):
    put_parquet(root, "data/train-00000-of-00002.parquet", hugging_face_table(5), row_group_size=2)
    put_parquet(root, "data/train-00001-of-00002.parquet", hugging_face_table(2, "text"))
    dataset = Dataset.open(root)
    expected = [f"data/train-0000{file}-of-00002/{row:06d}" for file, rows in ((0, 5), (1, 2)) for row in range(rows)]
    assert dataset.kind == "hugging-face" and dataset.ids() == expected
    assert [e.id for ref in dataset.shards(1) for e in dataset.read(ref)] == expected
    assert [(e.text, e.image) for e in dataset.examples()][4:6] == [
        ("a <cat> of 4", png((4, 0, 0))),
        ("a <cat> of 0", png((0, 0, 0))),
    ]
    assert sources.info(root).row_groups == 4 and sources.validate(root).ok
    report = sources.build_dataset(dataset, f"{root}-built", row_group=3)
    built = Dataset.open(report.uri)
    assert built.kind == "parquet" and list(built.examples()) == list(dataset.examples())
    assert [shard.rows for shard in built.shards(64)] == [3, 3, 1]


def test_ids_of_many_files_are_read_once_and_in_order(tmp_path, monkeypatch):
    write_dataset(examples(40), tmp_path, row_group=1, rows_per_file=3)
    dataset, opened = Dataset.open(tmp_path), []
    assert len(list(tmp_path.glob("*.parquet"))) > 10
    monkeypatch.setattr(ParquetDataset, "_opened", spying(ParquetDataset._opened, opened))
    assert dataset.ids() == dataset.ids() == [f"p{n}" for n in range(40)]
    assert len(opened) == len(set(opened)) == len(list(tmp_path.glob("*.parquet")))
    few = dataset.only(dataset.shards(1)[3:4])
    assert few.ids() == [example.id for example in few.examples()] and len(few.ids()) < 40


def spying(method, seen):
    def spied(self, name, use):
        seen.append(name)
        return method(self, name, use)

    return spied


def test_other_peoples_columns_of_our_names_are_not_read_as_ours(tmp_path):
    pq.write_table(
        hugging_face_table(1).append_column("masks", [[7]]).append_column("group", [[3]]), tmp_path / "a.parquet"
    )
    (example,) = Dataset.open(tmp_path).examples()
    assert example.masks == {} and example.group is None


def test_a_row_group_that_cannot_be_held_is_refused_with_advice(tmp_path, monkeypatch):
    pq.write_table(hugging_face_table(5), tmp_path / "a.parquet")
    monkeypatch.setattr("mcpl.data.dataset.ROW_GROUP_BYTES", 100)
    with pytest.raises(ConfigError, match="row group 0 holds .* write the file again with row groups of about 64"):
        list(Dataset.open(tmp_path).examples())


def test_rows_are_taken_evenly_from_the_whole(tmp_path):
    dataset = Dataset.open(write_dataset(examples(25), tmp_path, row_group=4, rows_per_file=10).uri)
    assert [e.id for ref in dataset.spread(5) for e in dataset.read(ref)] == ["p0", "p5", "p10", "p15", "p20"]
    assert [e.id for ref in dataset.spread(99) for e in dataset.read(ref)] == dataset.ids()


# -- folders -----------------------------------------------------------------------------------------------------


def test_a_folder_with_metadata_tells_what_it_leaves_out(tmp_path):
    folder = tmp_path / "photos"
    write_folder(folder, {"one.png": "a <cat>", "absent.png": "x", "../secret.png": "x"})
    with open(folder / "metadata.jsonl", "a") as file:
        file.write('not json\n{"text": "no file"}\n{"file_name": "two.png"}\n\n')
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "notes.md").write_text("x")
    items = list(SOURCES["folder"](str(folder)))
    assert [(i.id, i.text) for i in items if isinstance(i, Example)] == [("one.png", "a <cat>")]
    rejected = {i.id: i.reason.partition(":")[0] for i in items if isinstance(i, Rejected)}
    assert rejected == {
        "metadata.jsonl:2": "no such file",
        "metadata.jsonl:3": "file_name '../secret.png' leaves its folder",
        "metadata.jsonl:4": "not JSON",
        "metadata.jsonl:5": "no file_name in this line",
        "metadata.jsonl:6": "no text in this line",
        "two.png": "no sentence",
        ".DS_Store": "hidden file",
        "notes.md": "not a picture",
    }


def test_a_folder_with_txt_files(root):
    store = open_store(root)
    store.put("a/one.jpg", png(format="JPEG"))
    store.put("a/one.txt", "\ufeffa <cat>\n".encode())
    store.put("two.jpg", b"")
    store.put("two.txt", b"a <dog>")
    store.put("three.jpg", png(format="JPEG"))
    dataset = Dataset.open(root)
    assert [(e.id, e.text) for e in dataset.examples()] == [("a/one.jpg", "a <cat>"), ("two.jpg", "a <dog>")]
    assert [r.id for r in dataset.rejected] == ["three.jpg"]
    report = sources.validate(root)
    assert (report.rows, report.good, report.ok) == (2, 1, False)
    assert [(f.id, f.reason) for f in report.faults.first][-1] == ("two.jpg", "the picture is empty (0 bytes)")


def test_names_and_sentences_that_are_no_text_are_rejected(tmp_path):
    folder = tmp_path / "photos"
    write_folder(folder, {"one.png": "a \ud800 <cat>", "two.png": "a <dog>"})
    (tmp_path / "photos" / os.fsdecode(b"\xff.png")).write_bytes(png())
    (folder / "round").symlink_to(folder)
    dataset = Dataset.open(folder)
    assert dataset.ids() == ["two.png"]
    assert {r.id: r.reason.partition(":")[0] for r in dataset.rejected} == {
        "metadata.jsonl:1": "no text in this line",
        "one.png": "no sentence",
        "'\\udcff.png'": "its name is not UTF-8",
    }


@pytest.mark.parametrize("content", [{}, {"notes.md": b"x"}, {"a.png": b"x"}])
def test_a_folder_without_rows_is_no_dataset(tmp_path, content):
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match="holds no|nothing"):
        Dataset.open(tmp_path)


def test_one_picture_and_its_sentence(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(png())
    assert sources.picture_and_sentence(path, "a <cat>") == Example("photo", png(), "a <cat>")
    path.write_bytes(b"text")
    with pytest.raises(ExampleError, match=r"photo\.png: not a picture"):
        sources.picture_and_sentence(path, "a <cat>")
    for wrong in (tmp_path, tmp_path / "absent.png"):
        with pytest.raises(ConfigError):
            sources.picture_and_sentence(wrong, "a <cat>")


# -- writing -----------------------------------------------------------------------------------------------------


def test_writing_is_deterministic_and_may_be_repeated(root):
    rows = examples(10)
    first = write_dataset(rows, root, rows_per_file=4)
    store = open_store(root)
    before = {entry.name: store.get(entry.name) for entry in store.list()}
    assert sorted(before) == [f"data-0000{i}.parquet" for i in range(3)]
    assert write_dataset(rows, root, rows_per_file=4) == first
    assert {entry.name: store.get(entry.name) for entry in store.list()} == before


@pytest.mark.parametrize("count", [9, 11, 3])
def test_another_datasets_place_is_refused_and_left_alone(tmp_path, count):
    write_dataset(examples(10), tmp_path, rows_per_file=4)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match="give an empty place"):
        write_dataset(examples(count), tmp_path, rows_per_file=4)
    with pytest.raises(ConfigError, match="give an empty place"):
        write_dataset(examples(4), tmp_path, rows_per_file=4)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "data-00000.parquet").rename(tmp_path / "photo.jpg")
    with pytest.raises(ConfigError, match="holds other files .photo.jpg."):
        write_dataset(examples(10), tmp_path)


def test_an_interrupted_build_is_no_dataset_until_it_is_finished(root):
    def stops():
        yield from examples(6)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(stops(), root, rows_per_file=4)
    assert [entry.name for entry in open_store(root).list()] == [UNFINISHED, "data-00000.parquet"]
    with pytest.raises(ConfigError, match="did not finish"):
        Dataset.open(root)
    assert write_dataset(examples(8), root, rows_per_file=4).rows == 8
    assert Dataset.open(root).count == 8


def test_nothing_usable_writes_nothing(tmp_path):
    with pytest.raises(ConfigError, match="no usable example .bad: the picture is empty"):
        write_dataset(checked([Example("bad", b"", "a <cat>")]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_checked_rejects_bad_pictures_sentences_and_doubled_ids(tmp_path):
    good = examples(2)
    bad = [Example("zero", b"", "x"), Example("foreign", b"hi", "x"), Example("mute", png(), " "), good[0]]
    report = write_dataset(checked([*good, *bad]), tmp_path)
    assert report.rows == 2 and report.faults.lost == 4
    assert set(report.faults.kinds) == {
        "the picture is empty (… bytes)",
        "not a picture",
        "empty sentence",
        "its image_id is empty or taken",
    }


def test_marking_finds_and_misses(tmp_path):
    captions = ["a brown bear, and a ball", "Two bears!", "nothing here", "a <dog> and a bear"]
    write_dataset([Example(f"{i}", png(), text) for i, text in enumerate(captions)], tmp_path / "plain")
    report = sources.mark_dataset(tmp_path / "plain", ["bear", "ball", "zebra"], tmp_path / "marked")
    texts = [example.text for example in Dataset.open(tmp_path / "marked").examples()]
    assert texts == ["a brown <bear>, and a <ball>", "Two <bear>!", "nothing here", "a <dog> and a <bear>"]
    assert report.missed == ("zebra",) and report.unmarked == ("2",) and report.marked == 3
    assert report.found["bear"] == 3 and report.found["ball"] == 1
    with pytest.raises(ConfigError, match="no nouns"):
        sources.mark_dataset(tmp_path / "plain", [" "], tmp_path / "other")
    looked = sources.mark_dataset(tmp_path / "plain", ["bear", "ball", "zebra"])
    assert (looked.marked, looked.rows, looked.found, looked.missed) == (3, 4, report.found, ("zebra",))
    assert str(tmp_path / "plain") in str(looked), "a look names the dataset that is there"
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "marked"}


def test_validation_names_every_bad_row(tmp_path):
    rows = [
        Example("good", png(), "a <cat> by a <dog>", {"cat": png(255, mode="L")}),
        Example("masks", png(), "a <cat> by a <dog>", {"cat": b"junk", "dog": png(255, (3, 3), "L")}),
        Example("mute", png(), ""),
        Example("plain", png(), "a cat"),
        Example("twice", png(), "a <cat> and a <cat>"),
        Example("cut", png()[:40], "a <cat>"),
        Example("long", png(size=(4, 40)), "a very very very long <cat>"),
    ]
    write_dataset(rows, tmp_path)
    report = sources.validate(tmp_path, token_length=lambda text: len(text.split()) + 2, token_limit=7)
    assert (report.rows, report.good, report.masked) == (7, 2, 2)
    assert [fault.id for fault in report.faults.first] == ["masks", "masks", "mute", "plain", "twice", "cut", "long"]
    assert report.heights.high == 40 and report.tokens.high == 8 and report.concepts[2] == 2
    assert "unusable mask (first: masks)" in str(report)


# -- scenes ------------------------------------------------------------------------------------------------------


def test_scenes_are_deterministic_masked_and_new_to_the_base(tmp_path):
    from mcpl.scenes.scene import Scene
    from mcpl.scenes.world import shapes

    first, again = list(sources.scenes(4, seed=3)), list(sources.scenes(4, seed=3))
    assert first == again and [e.image for e in sources.scenes(4, seed=4)] != [e.image for e in first]
    for example in first:
        names = [item.shape for item in Scene.from_json(example.truth).objects]
        assert len(names) == 2 and set(names) <= set(shapes("unnamed"))
        assert list(example.masks) == names and all(f"<{name}>" in example.text for name in names)
    write_dataset(first, tmp_path)
    assert list(Dataset.open(tmp_path).examples()) == first
    assert sources.validate(tmp_path).ok
    for wrong in ({"naming": "foo"}, {"objects": 99}):
        with pytest.raises(ConfigError):
            list(sources.scenes(1, **wrong))


def test_datasets_open_without_torch(tmp_path):
    write_dataset(examples(3), tmp_path)
    program = (
        "import sys; from mcpl.data.sources import Dataset\n"
        "print(Dataset.open(sys.argv[1]).count, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.split() == ["3", "False"]


@pytest.mark.parametrize(("line", "reason"), [("1" * 5000, "a number is too long"), ("[" * 10**5, "nested too deep")])
def test_json_that_python_refuses_is_one_rejected_line(tmp_path, line, reason):
    write_folder(tmp_path, {"one.png": "a <cat>"})
    with open(tmp_path / "metadata.jsonl", "a") as file:
        file.write(f"{line}\n")
    told = {item.id: item.reason for item in SOURCES["folder"](tmp_path) if isinstance(item, Rejected)}
    assert told["metadata.jsonl:2"] == f"not JSON: {reason}"
