"""Which rows make one job: groups stay whole wherever their rows lie, and everything else is as it was."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from mcpl.data import groups
from mcpl.data.dataset import Dataset
from mcpl.data.writing import encode_examples
from mcpl.errors import ConfigError
from mcpl.types import Example, Group
from tests.data.conftest import png


def dataset(folder, *files, row_group: int = 4) -> Dataset:
    """One Parquet file for each list of (id, group)."""
    for number, rows in enumerate(files):
        examples = [Example(id, png((number, place, 9)), "a <star>", group=group) for place, (id, group) in rows]
        (folder / f"part-{number}.parquet").write_bytes(encode_examples(examples, row_group))
    return Dataset.open(folder)


def numbered(*groups_of: str | None) -> list:
    """(place, (id, group)) of rows p0, p1 ..."""
    return [(place, (f"p{place}", group)) for place, group in enumerate(groups_of)]


def shuffled(seed: int) -> list:
    names = [name for name in "abcdef" for _ in range(1 + ord(name) % 4)] + [None] * 7
    random.Random(seed).shuffle(names)
    return numbered(*names)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_job_is_read_once_and_whole_wherever_its_rows_lie(tmp_path, seed, size):
    rows = shuffled(seed)
    files = rows[:9], rows[9:]
    made = dataset(tmp_path, *files)
    wanted = {}
    for _, (id, group) in rows:
        wanted.setdefault(group or id, []).append(id)
    found = {}
    for refs, names in groups.jobs(made, size):
        there = {job.id: job for job in groups.read(made, refs)}
        for name in names:
            assert name not in found, "planned twice"
            found[name] = [picture.id for picture in there[name].pictures]
            assert isinstance(there[name], Group) == (name in "abcdef")
    assert found == wanted
    assert list(found) == list(groups.places(made)), "in the dataset's order"
    assert [job.id for job in groups.every(made)] == list(found)


def test_a_dataset_without_groups_is_cut_as_it_lies(tmp_path):
    made = dataset(tmp_path, numbered(*[None] * 10))
    cut = list(groups.jobs(made, 3))
    assert [refs for refs, _ in cut] == [(ref,) for ref in made.shards(3)]
    assert [id for _, ids in cut for id in ids] == made.ids()
    assert groups.sizes(made) == {}


def test_the_group_column_of_one_file_says_nothing_of_another(tmp_path):
    plain = [(place, (f"q{place}", None)) for place in range(3)]
    made = dataset(tmp_path, plain, numbered("a", "a"))
    assert made.groups() == [None, None, None, "a", "a"]
    assert [job.id for job in groups.every(made)] == ["q0", "q1", "q2", "a"]


def test_a_group_called_like_somebody_elses_picture_is_refused(tmp_path):
    made = dataset(tmp_path, numbered("p2", "p2", None))
    with pytest.raises(ConfigError, match="'p2' is both a group and a picture outside it"):
        list(groups.jobs(made, 4))


def test_a_group_may_be_called_like_its_first_picture(tmp_path):
    made = dataset(tmp_path, numbered("p0", "p0", None))
    assert [names for _, names in groups.jobs(made, 9)] == [["p0", "p2"]]


def test_groups_are_spread_as_pictures_are(tmp_path):
    made = dataset(tmp_path, numbered("a", "a", None, "b", "b", "c", None, "c"))
    assert [job.id for job in groups.spread(made, 2)] == ["a", "b"]
    assert [job.id for job in groups.spread(made, 9)] == ["a", "p2", "b", "c", "p6"]


def test_a_folders_lines_may_name_groups(tmp_path):
    lines = [("x.png", "a <star>", "pair"), ("y.png", "a <star> here", "pair"), ("z.png", "a <ring>", None)]
    for name, *_ in lines:
        (tmp_path / name).write_bytes(png())
    told = [{"file_name": n, "text": t} | ({"group": g} if g else {}) for n, t, g in lines]
    told.append({"file_name": "z.png", "text": "a <moon>", "group": 7})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, told)))
    made = Dataset.open(tmp_path)
    assert "group" in made.columns
    assert [(job.id, len(job.pictures)) for job in groups.every(made)] == [("pair", 2), ("z.png", 1)]
    assert "group is not valid text" in made.rejected[0].reason


def test_an_empty_name_is_no_group():
    alone = Example("x", b"", "a <star>", group="")
    assert groups.gathered([alone, replace(alone, id="y")]) == [alone, replace(alone, id="y")]
