"""WebDataset tars, as they are published and as somebody hostile would make them."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile

import pytest

from mcpl.data.sources import SOURCES, Dataset, Rejected, build_dataset, detect, validate
from mcpl.data.storage import open_store
from mcpl.errors import ConfigError
from mcpl.types import Example

from .conftest import png, tar_bytes

MASK = png(255, mode="L")


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path) -> str:
    return str(tmp_path / "tars") if request.param == "local" else request.getfixturevalue("bucket") + "/a/tars"


def shard(start: int, count: int) -> bytes:
    members: dict[str, bytes] = {}
    for i in range(start, start + count):
        members[f"{i:05d}.jpg"] = png((i, 0, 0), format="JPEG")
        members[f"{i:05d}.txt"] = f"a red <ball> of {i}\n".encode()
    return tar_bytes(members)


def told(uri) -> dict[str, str]:
    return {item.id: item.reason for item in SOURCES["webdataset"](uri) if isinstance(item, Rejected)}


def test_several_tars_are_one_dataset(root):
    store = open_store(root)
    store.put("train/0000.tar", shard(0, 5))
    store.put("train/0001.tar", shard(0, 3))  # counts anew, as many collections do
    assert detect(root) == "webdataset"
    dataset = Dataset.open(root)
    assert dataset.ids() == [f"train/0000/{i:05d}" for i in range(5)] + [f"train/0001/{i:05d}" for i in range(3)]
    dataset.check_ids()
    assert [e.text for e in dataset.examples()] == [f"a red <ball> of {i}" for i in (0, 1, 2, 3, 4, 0, 1, 2)]
    assert dataset.rejected == () and validate(root).ok
    part = pickle.loads(pickle.dumps(dataset.only(dataset.shards(3)[1:2])))
    assert part.read(dataset.shards(3)[1]) == list(dataset.examples())[3:6], "as a worker elsewhere reads it"
    assert Dataset.open(f"{root}/train/0001.tar").count == 3
    built = build_dataset(dataset, f"{root}-built")
    assert list(Dataset.open(built.uri).examples()) == list(dataset.examples())


def test_sentences_in_json_and_masks_are_read(tmp_path):
    members = {
        "1.png": png(),
        "1.json": json.dumps({"caption": " a <cat> by a <dog> ", "url": "http://x"}).encode(),
        "1.mask.cat.png": MASK,
        "1.mask.dog.png": png(255, size=(3, 3), mode="L"),
        "2.png": png(),
        "2.json": json.dumps({"text": "a <hat>", "caption": "other"}).encode(),
        "2.txt": b"the <cap>",
        "3.png": png(),
        "3.json": json.dumps({"width": 3}).encode(),
        "4.png": png(),
        "4.json": b"[" * 100_000,
    }
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    items = list(SOURCES["webdataset"](tmp_path))
    rows = {item.id: item for item in items if isinstance(item, Example)}
    assert {id: row.text for id, row in rows.items()} == {
        "a/1": "a <cat> by a <dog>",
        "a/2": "the <cap>",
        "a/3": "",
        "a/4": "",
    }
    assert list(rows["a/1"].masks) == ["cat"]
    reasons = [item.reason for item in items if isinstance(item, Rejected)]
    assert reasons == [
        "unusable mask: its size is 3 x 3, the picture's 12 x 8",
        "no text or caption in this JSON",
        "no text or caption in this JSON",
    ]


def test_untrusted_members_are_told_and_nothing_is_extracted(tmp_path):
    place = tmp_path / "set"
    place.mkdir()
    good = {"./a/1.png": png(), "./a/1.txt": b"a <cat>"}
    odd = {
        "../../escape.png": png(),
        "/etc/absolute.png": png(),
        "a/../../b.png": png(),
        "._1.png": b"x",
        "2.png": png(),
        "3.txt": b"a <dog>",
        "a/1.PNG": png((1, 1, 1)),
        "a/1.cls": b"7",
        "\udcff.png": png(),
    }
    buffer = io.BytesIO(tar_bytes(good | odd))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        for name, kind in (("4.png", tarfile.SYMTYPE), ("5.png", tarfile.LNKTYPE), ("6.png", tarfile.CHRTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    (place / "x.tar").write_bytes(buffer.getvalue())
    (place / "x.tar.gz").write_bytes(b"x")
    before = sorted(os.walk(tmp_path))
    dataset = Dataset.open(place)
    assert [(e.id, e.text, e.image) for e in dataset.examples()] == [("x/a/1", "a <cat>", png())]
    assert told(place) == {
        "x.tar.gz": "not a tar: its name does not end in .tar",
        "x.tar!../../escape.png": "member whose name leaves the tar",
        "x.tar!/etc/absolute.png": "member whose name leaves the tar",
        "x.tar!a/../../b.png": "member whose name leaves the tar",
        "x.tar!._1.png": "hidden file",
        "x.tar!'\\udcff.png'": "its name is not UTF-8",
        "x.tar!4.png": "member that is no plain file",
        "x.tar!5.png": "member that is no plain file",
        "x.tar!6.png": "member that is no plain file",
        "x.tar!a/1.PNG": "second member of one name: the first is read",
        "x/2": "no sentence: no .txt or .json of its name in the tar",
        "x/3": "no picture: none of its name in the tar",
        "x.tar": "members that are not read: .cls (1)",
    }
    assert sorted(os.walk(tmp_path)) == before


def test_a_tar_that_is_cut_anywhere_gives_what_stands_before(tmp_path):
    whole = shard(0, 6)
    path = tmp_path / "a.tar"
    counts = []
    for keep in range(1536, len(whole), 700):
        path.write_bytes(whole[:keep])
        try:
            dataset = Dataset.open(tmp_path)
        except ConfigError as fault:
            assert "no picture with a sentence" in str(fault)
            counts.append(0)
            continue
        examples = list(dataset.examples())
        assert [e.text for e in examples] == [f"a red <ball> of {i}" for i in range(len(examples))]
        counts.append(len(examples))
        if len(examples) < 6:
            assert any("cut short" in reason for reason in told(tmp_path).values())
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 6


def test_bytes_in_the_middle_that_are_no_header_end_the_tar_aloud(tmp_path):
    whole = bytearray(shard(0, 6))
    third = next(i for i in range(0, len(whole), 512) if whole[i : i + 9] == b"00003.jpg")
    whole[third : third + 512] = b"\x7f" * 512
    (tmp_path / "a.tar").write_bytes(whole)
    assert Dataset.open(tmp_path).count == 3
    assert "no header where one should be" in told(tmp_path)["a.tar"]


def test_tars_joined_end_to_end_are_told(tmp_path):
    (tmp_path / "a.tar").write_bytes(shard(0, 2) + shard(2, 2))
    assert Dataset.open(tmp_path).count == 2
    assert "after the tar's end mark" in told(tmp_path)["a.tar"]


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar header with any size at all, below zero too (GNU's base 256)."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11, "big")
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    return bytes(block)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "lie",
    [
        header("back.png", -1024),
        header("back.png", -5),
        header("long", -1, tarfile.GNUTYPE_LONGNAME),
        header("long", 1 << 40, tarfile.GNUTYPE_LONGNAME),
        header("pax", 1 << 40, tarfile.XHDTYPE),
        header("far.png", 1 << 60),
        header("pax", 512, tarfile.XHDTYPE) + b"999999999999 path=x\n".ljust(512, b"\0"),
        header("sparse.png", 512, tarfile.GNUTYPE_SPARSE) + b"\0" * 512,
    ],
)
def test_headers_that_lie_cost_neither_time_nor_memory(tmp_path, lie):
    unended = shard(0, 2).rstrip(b"\0")
    unended += b"\0" * (-len(unended) % 512)
    (tmp_path / "a.tar").write_bytes(unended + lie + shard(2, 1))
    dataset = Dataset.open(tmp_path)
    assert [e.text for e in dataset.examples()][:2] == ["a red <ball> of 0", "a red <ball> of 1"]
    assert dataset.rejected


def test_a_folder_of_foreign_tars_is_no_dataset(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" + b"x" * 600)
    with pytest.raises(ConfigError, match="a.tar: the tar is cut short or damaged"):
        Dataset.open(tmp_path)


def test_a_json_sentence_that_python_refuses_is_an_empty_one_with_its_reason(tmp_path):
    members = {"1.png": png(), "1.json": b'{"text": "a <cat>", "seed": ' + b"1" * 5000 + b"}"}
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    items = list(SOURCES["webdataset"](tmp_path))
    assert [item.text for item in items if isinstance(item, Example)] == [""]
    assert "no text or caption in this JSON" in [item.reason for item in items if isinstance(item, Rejected)]
