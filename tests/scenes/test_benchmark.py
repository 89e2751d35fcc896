"""Scenes-MC: every set shows what its line of SETS promises, stays frozen, and is built by one command."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ceilings
from mcpl.data.sources import Dataset, scenes_mc, validate, write_dataset
from mcpl.errors import ConfigError
from mcpl.prompts import TEMPLATES, parse
from mcpl.scenes import benchmark
from mcpl.scenes.benchmark import OCCLUSIONS, SETS, SPLITS, BenchmarkRow, digest
from mcpl.scenes.grammar import vocabulary
from mcpl.scenes.judge import WEIGHTS
from mcpl.scenes.render import render
from mcpl.scenes.scene import COUNTS, Scene, sample_scene
from mcpl.scenes.tissue import TISSUES
from mcpl.scenes.world import COLOURS, GROUNDS, HELD_OUT, RELATIONS, SIZES, shapes

SCRIPT = Path(__file__).resolve().parents[2] / "pipelines" / "build_dataset.py"
EACH = pytest.mark.parametrize(("name", "split"), list(itertools.product(SETS, SPLITS)))


@cache
def shown(name: str, split: str) -> tuple[BenchmarkRow, ...]:
    return tuple(benchmark.rows(name, split))


def content(row: BenchmarkRow) -> bytes:
    return row.picture.tobytes()


@EACH
def test_a_set_is_the_frozen_one(name, split):
    assert digest(shown(name, split)) == json.loads(benchmark.FROZEN.read_text())[name][split]


@EACH
def test_sets_are_large_enough_and_every_picture_is_another(name, split):
    rows = shown(name, split)
    assert len(rows) >= (60 if split == "test" else 30)
    assert len({row.id for row in rows}) == len({content(row) for row in rows}) == len(rows)


@pytest.mark.parametrize("name", SETS)
def test_development_and_test_share_no_picture_and_no_scene(name):
    dev, test = ({content(row) for row in shown(name, split)} for split in SPLITS)
    assert not dev & test
    if SETS[name].pool != "tissue":
        dev, test = ({row.scene.objects for row in shown(name, split)} for split in SPLITS)
        assert not dev & test


@EACH
def test_sentences_name_every_object_once_with_or_without_adjectives(name, split):
    spec = SETS[name]
    pool = tuple(TISSUES) if spec.pool == "tissue" else shapes(spec.pool)
    for row in shown(name, split):
        sentence = parse(row.text)
        slugs = [concept.slug for concept in sentence.concepts]
        assert len(slugs) == len(set(slugs)) == spec.objects and set(slugs) <= set(pool)
        assert slugs == [item.shape for item in row.scene.objects]
        for concept, item in zip(sentence.concepts, row.scene.objects, strict=True):
            told = (item.colour, *(["striped"] if item.texture == "striped" else []))
            assert concept.adjectives == (told if spec.adjectives else ())
        if spec.objects == 2:
            assert row.text.partition("> ")[2].startswith(f"{row.scene.relation} a ")
        ordinary = {word.text for word in sentence.words if word.role != "placeholder" and word.text.isalpha()}
        assert ordinary <= set(vocabulary(TEMPLATES))  # the small base knows every word that is not learned


@EACH
def test_masks_are_the_visible_objects(name, split):
    for row in shown(name, split):
        masks = np.stack(list(row.masks.values()))
        assert list(row.masks) == [item.shape for item in row.scene.objects]
        assert masks.any((1, 2)).all() and masks.sum(0).max() == 1
        for mask, item in zip(masks, row.scene.objects, strict=True):
            rows, columns = np.nonzero(mask)
            half = item.size // 2
            assert item.y - half <= rows.min() and rows.max() < item.y + half
            assert item.x - half <= columns.min() and columns.max() < item.x + half
        if isinstance(row.scene, Scene):  # pure colour lies in its objects' masks, pure ground in none
            for colour in {item.colour for item in row.scene.objects}:
                pure = (row.picture == COLOURS[colour]).all(-1)
                assert pure.any()
                assert not (pure & ~masks[[item.colour == colour for item in row.scene.objects]].any(0)).any()
            assert not ((row.picture == GROUNDS[row.scene.ground]).all(-1) & masks.any(0)).any()


@pytest.mark.parametrize("split", SPLITS)
def test_the_second_object_hides_the_promised_share_of_the_first(split):
    ladder = [shown(f"occluded-{round(100 * share)}", split) for share in OCCLUSIONS]
    for same in zip(*ladder, strict=True):
        for row, share in zip(same, OCCLUSIONS, strict=True):
            first = row.scene.objects[0]
            whole = render(Scene(row.scene.ground, (first,)))[1][0]
            hidden = (whole & ~row.masks[first.shape]).sum() / whole.sum()
            assert abs(hidden - share) <= 0.05 and (share or not hidden)
        assert len({row.text for row in same}) == 1  # the same objects, told alike
        assert same[0].scene.objects[0].colour != same[0].scene.objects[1].colour


@EACH
def test_only_the_unseen_set_shows_held_out_combinations(name, split):
    for row in shown(name, split):
        held_out = [(item.shape, item.colour) in HELD_OUT for item in row.scene.objects]
        assert held_out == [name == "unseen-2"] + [False] * (len(held_out) - 1)


def test_objects_but_those_of_the_occluded_sets_lie_apart():
    for name in ("named-2", "named-3", "named-4", "named-5", "unnamed-3", "unseen-2"):
        for row in shown(name, "test"):
            for a, b in itertools.combinations(row.scene.objects, 2):
                assert max(abs(a.x - b.x), abs(a.y - b.y)) >= (a.size + b.size) / 2 + 2


@pytest.mark.parametrize("name", ["named-2", "named-3", "unnamed-2", "unnamed-3", "tissue-2"])
def test_bare_sets_are_the_same_pictures_told_otherwise(name):
    for told, bare in zip(shown(name, "test"), shown(f"{name}-bare", "test"), strict=True):
        assert content(told) == content(bare) and told.text != bare.text
        assert (told.id.rsplit("-", 1)[1], told.scene) == (bare.id.rsplit("-", 1)[1], bare.scene)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["named-diverse", "unnamed-diverse"])
def test_groups_share_their_concepts_and_nothing_else(name, split):
    groups = [list(each) for _, each in itertools.groupby(shown(name, split), key=lambda row: row.group)]
    assert len(groups) == {"dev": 8, "test": 30}[split] and {len(group) for group in groups} == {4}
    for group in groups:
        assert [row.id for row in group] == [f"{group[0].group}-{place}" for place in range(4)]
        looks = {tuple((o.shape, o.colour, o.texture) for o in row.scene.objects) for row in group}
        assert len(looks) == 1
        assert {row.scene.relation for row in group} == set(RELATIONS)
        assert {row.scene.ground for row in group} == set(GROUNDS)
        assert len({row.text for row in group}) == 4
    assert all(row.group is None for row in shown("named-2", split))


def test_tissue_is_grey_grained_and_seen_against_its_ground():
    for row in shown("tissue-2", "test"):
        assert (row.picture == row.picture[..., :1]).all()
        grey = row.picture[..., 0].astype(float)
        ground = grey[~np.any(list(row.masks.values()), axis=0)]
        assert 5 < ground.std() < 25
        for item in row.scene.objects:
            inside = grey[row.masks[item.shape]]
            outermost = np.percentile(inside, 90 if item.colour == "white" else 10)
            assert (outermost - ground.mean()) * (1 if item.colour == "white" else -1) > 40


def test_a_picture_holds_as_many_objects_as_there_are_sizes_for():
    assert max(COUNTS) == 3  # training; more is only asked of the benchmark
    with pytest.raises(ValueError, match=f"room for 1 to {max(SIZES)}"):
        sample_scene(0, objects=max(SIZES) + 1, pool=shapes("named"))


def test_a_set_becomes_a_dataset_and_back(tmp_path):
    for name in ("unnamed-diverse", "tissue-2"):
        examples = list(scenes_mc(name, "dev"))
        write_dataset(examples, tmp_path / name)
        dataset = Dataset.open(tmp_path / name)
        assert list(dataset.examples()) == examples and ("group" in dataset.columns) == (name == "unnamed-diverse")
        report = validate(tmp_path / name)
        assert report.ok and report.masked == report.rows and not report.faults.kinds
    assert [e.group for e in scenes_mc("unnamed-diverse", "dev")][3:5] == [
        f"unnamed-diverse-dev-000{i}" for i in (0, 1)
    ]
    assert all(example.truth is None for example in examples)  # no judge reads tissue
    assert all(Scene.from_json(example.truth) for example in scenes_mc("named-5", "dev"))


def test_a_changed_world_is_noticed(monkeypatch):
    monkeypatch.setitem(COLOURS, "red", (225, 30, 41))
    from mcpl.scenes.render import _paint

    _paint.cache_clear()
    with pytest.raises(ConfigError, match=r"named-2 \(dev\) is not the frozen set.*--freeze"):
        list(scenes_mc("named-2", "dev"))
    monkeypatch.undo()
    _paint.cache_clear()
    assert len(list(scenes_mc("named-2", "dev"))) == 30


def test_the_command_builds_sets_a_sheet_and_a_table(tmp_path):
    def build(*arguments) -> subprocess.CompletedProcess:
        command = [sys.executable, SCRIPT, "scenes-mc", "--split", "dev", "--out", tmp_path / "out", *arguments]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)

    done = build("--only", "unnamed-2", "--only", "named-diverse", "--sheet", tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("set ") and [line.split()[:2] for line in lines[1:3]] == [
        ["unnamed-2", "30"],
        ["named-diverse", "32"],
    ]
    assert lines[-1].startswith("62 rows in 2 set(s), dev split") and (tmp_path / "sheet.png").stat().st_size > 10_000
    assert Dataset.open(tmp_path / "out" / "unnamed-2").count == 30
    wrong = build("--only", "named-9")
    assert wrong.returncode == 2 and "no set of Scenes-MC: use named-2, " in wrong.stderr


def test_ceilings_say_what_may_carry_a_bar(tmp_path, monkeypatch, capsys):
    some = ("named-3", "unnamed-3-bare", "occluded-0", "occluded-25", "named-diverse", "tissue-2")
    monkeypatch.setattr(ceilings, "SETS", {name: SETS[name] for name in some})
    kept = tmp_path / "ceilings.json"
    options = ["--split", "dev", "--pictures", "8", "--steps", "1", "--write", str(kept)]
    monkeypatch.setattr(sys, "argv", ["ceilings", *options])
    ceilings.main()
    printed = capsys.readouterr().out.splitlines()
    record = json.loads(kept.read_text())
    assert json.loads(printed[-1]) == record
    assert record["command"].startswith("python -m benchmarks.ceilings --split") and record["hardware"]["cpu"]
    assert len(record["base_digest"]) == 16 and len(record["judge_sha256"]) == 64 and record["commit"]
    assert record["seeds"]["noise"] == ceilings.SEED
    found = record["sets"]
    told = ["true names", "thing", "true names", "true names", "true names", None]
    assert [found[name]["told"] for name in some] == told
    for prefix in ("", "second_"):  # both judges score the split
        assert found["named-3"][prefix + "right"]["n"] == found["named-3"][prefix + "alone"]["n"] == 8
        assert found["named-3"][prefix + "relation"] is None
        assert found["named-diverse"][prefix + "relation"]["n"] == 2  # groups
    assert found["tissue-2"]["right"] is None and found["tissue-2"]["vae_psnr"]["n"] == 8
    assert found["occluded-25"]["right"] is None, "nobody draws the occluded sets apart"
    assert [found[name]["status"] for name in some] == [
        "measured", "borrowed", "measured", "borrowed", "measured", "unmeasured",
    ]  # fmt: skip
    assert {found[name]["usable"] for name in some[:-1]} == {False}  # one step draws nothing right
    assert found["tissue-2"]["usable"] is None
    page = kept.with_suffix(".md").read_text()
    rows = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")}
    assert "borrowed from named-3; its own unmeasured; figures: chance" in rows["unnamed-3-bare"]
    assert "borrowed from occluded-0" in rows["occluded-25"] and rows["occluded-25"].count("| - ") == 7
    assert "ceiling unmeasured" in rows["tissue-2"] and record["base_digest"] in page
    assert page.count("| second |") == 4


def test_a_set_that_the_second_judge_does_not_bear_out_is_marked(monkeypatch):
    monkeypatch.setattr(ceilings, "SETS", {"named-2": SETS["named-2"]})
    found = ceilings.measure(WEIGHTS.parent, "dev", 2, steps=1)
    found["named-2"]["right"]["mean"] = 0.5
    for second, doubted in ((0.49, True), (0.5, False)):
        found["named-2"]["second_right"]["mean"] = second
        assert ceilings.verdict("named-2", found) == {"usable": True, "doubted": doubted}
        marked = {"named-2": found["named-2"] | ceilings.verdict("named-2", found)}
        assert ("the second judge: under 0.5" in ceilings.table(marked)) == doubted
