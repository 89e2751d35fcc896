"""The benchmark of recipes: its statistics by hand, and that it goes on where it stopped."""

from __future__ import annotations

import json
import runpy
import sys

import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import recipes as module
from benchmarks import results_follow
from mcpl.config import Placement
from mcpl.data.sources import scenes


def row(recipe, id, seed, value, passes=(10, 20, 30), losses=(0.5, 0.3, 0.4)):
    return {
        "set": "s", "recipe": recipe, "id": id, "seed": seed, "assignment": value, "steps": 1, "passes": 30,
        "curve_passes": list(passes), "curve_losses": list(losses),
    }  # fmt: skip


def test_pictures_count_alike_however_many_seeds_they_have():
    rows = [row("a", "x", 0, 0.0), row("a", "x", 1, 1.0), row("a", "y", 0, 1.0)]
    assert module.by_picture(rows, "assignment") == {"x": 0.5, "y": 1.0}
    assert module.summary(rows, "a", "a")["assignment"] == 0.75


def test_a_difference_is_paired_by_picture():
    """Every picture gains exactly .1, whatever it scores: the interval has no width, unlike that of the scores."""
    rows = [row("paper", f"p{i}", s, i / 10 + 0.1) for i in range(9) for s in (0, 1)]
    rows += [row("plain", f"p{i}", s, i / 10) for i in range(9) for s in (0, 1)]
    found = module.difference(rows, "paper", "plain", "assignment")
    assert found.interval == pytest.approx((0.1, 0.1, 0.1)) and found.pictures == 9
    _, low, high = module.interval([i / 10 for i in range(9)])
    assert high - low > 0.2


def test_a_table_counts_pictures_once_and_is_bold_where_luck_is_unlikely_in_all_of_it():
    """Twelve pictures, told in two ways. All gain in `assignment`: 2 of 4,096 exchanges are as far from 0, for each of
    three differences. In `right_object` five gain and none loses: 2 of 32, too many."""
    ids = [f"{name}-test-{i:04d}" for i in range(12) for name in ("unnamed-2", "unnamed-2-bare")]
    rows = [
        row(recipe, id, 0, own + i / 100) | {"set": id.split("-test")[0], "right_object": own * (i < 10)}
        for recipe, own in (("paper", 0.1), ("plain", 0.3))
        for i, id in enumerate(ids)
    ]
    text = module.table(rows, ["plain", "paper"], "t")
    assert text.count(": 12 pictures") == 3 and "## all sets: 12 pictures" in text
    differences = [line for line in text.splitlines() if line.startswith("| plain - paper")]
    told = [[cell.strip() for cell in line.split("|")[2:5]] for line in differences]
    assert len(told) == 3 and all(hit[0] == "0" and sure.startswith("**0.200") for hit, _, sure in told)


def test_the_first_pictures_of_a_set_can_be_skipped():
    every = [example.id for example in module.examples("unnamed-2", "dev", 4)]
    assert [example.id for example in module.examples("unnamed-2", "dev", 2, skip=2)] == every[2:]


def test_speed_counts_passes_to_the_other_recipes_least_loss():
    """paper is lowest (.3) after 20 passes; best gets there after 5 in one run and never in another."""
    rows = [row("paper", "x", 0, 1), row("paper", "y", 0, 1)]
    rows += [row("best", "x", 0, 1, (5, 6), (0.29, 0.28)), row("best", "y", 0, 1, (5, 6), (0.4, 0.35))]
    assert module.speed(rows, "best", "paper") == (0.25, 0.5)


def test_words_that_diverged_have_missed_and_stop_nothing():
    from mcpl.types import BankRow, Provenance

    recipe = module.load("plain")
    failed = BankRow("x", "t", "failed", Provenance(*["-"] * 4, 0, *["-"] * 3), reason="learning diverged")
    rows = [module.measure("plain", "s", failed, recipe), row("plain", "y", 0, 1.0)]
    assert module.summary(rows, "plain", "plain")["assignment"] == 0.5
    assert module.speed(rows, "plain", "plain") == (1.0, 1.0)


def test_learning_rates_are_variants():
    made = module.variants(["paper", "best"], [1e-3, 3e-4], steps=3)
    assert list(made) == ["paper@0.001", "paper@0.0003", "best@0.001", "best@0.0003"]
    assert made["best@0.001"].lr == 1e-3 and made["best@0.001"].steps == 3


def test_it_goes_on_where_it_stopped(monkeypatch, tmp_path, tiny_base_dir):
    learned = []
    original = module.Runner.__call__
    monkeypatch.setattr(module, "examples", lambda name, split, count, skip: scenes(count, seed=5))
    monkeypatch.setattr(
        module.Runner, "__call__", lambda self, pack: learned.extend(e.id for e in pack) or original(self, pack)
    )
    recipes = module.variants(["plain", "best"], [], base=str(tiny_base_dir), steps=2, probe_timesteps=2)
    plan = {"recipes": recipes, "sets": ["unnamed-2"], "split": "dev", "seeds": 1, "raw": tmp_path / "raw.jsonl"}
    plan["placement"] = Placement(pack=2, samples=0, device="cpu")
    module.run(**plan, count=1)
    with plan["raw"].open("a") as file:
        file.write('\n{"cut": ')  # killed while it wrote
    rows = module.run(**plan, count=2)
    first, second = "scene-5-000000", "scene-5-000001"
    assert learned == [first, first, second, second]
    assert [(r["recipe"], r["id"]) for r in rows] == [(n, i) for n in ("plain", "best") for i in (first, second)]
    text = module.table(rows, ["plain", "best"], "t")
    assert "| plain | - (-; -) |" in text and "2 pictures" in text and "| best - plain |" in text
    assert json.loads(json.dumps(module.summary(rows, "best", "plain")))["steps"] == 2
    module.write_parquet(rows, tmp_path / "raw.parquet")
    elsewhere = {"raw": tmp_path / "elsewhere.jsonl", "others": [tmp_path / "raw.parquet"]}
    assert len(module.run(**plan | elsewhere, count=2)) == 4 and len(learned) == 4, "what others know is not learned"


def test_what_is_compared():
    assert module._compared(["plain", "paper", "combined"]) == [
        ("plain", "paper"), ("combined", "paper"), ("combined", "plain"),
    ]  # fmt: skip
    assert module._compared(["plain@0.1", "plain@1"]) == [("plain@1", "plain@0.1")], "two others, with each other"
    assert module._compared(["plain@0.1", "plain@1", "plain@2"]) == []


@pytest.mark.slow
def test_the_whole_command_draws_judges_and_tells(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["recipes", "--quick", "--split", "dev", "--out", str(tmp_path)])
    module.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(told) == list(module.RECIPES)
    for recipe in told.values():
        assert set(module.REPORTED) | {"steps", "passes", "passes_to_paper", "reached"} == set(recipe)
        assert recipe["steps"] == 10 and None not in recipe.values()
    rows = pq.read_table(tmp_path / "raw.parquet").to_pylist()
    assert (tmp_path / "table.md").read_text().startswith("# Recipes on Scenes-MC, dev split, 1 seed")
    with Image.open(tmp_path / module.FIGURE) as drawn:
        assert drawn.size == module.figure(rows, list(told)).size
    (tmp_path / module.FIGURE).write_bytes(b"an older one")
    assert list(results_follow.make_again(tmp_path)) == [tmp_path / module.FIGURE]
    assert list(results_follow.make_again(tmp_path)) == [], "what follows is not written again"


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (["--recipes", "bset"], "recipe 'bset' is neither"),
        (["--sets", "unnamed-2,unnamed-two"], "'unnamed-two' is no set"),
        (["--known", "nowhere.parquet"], "--known nowhere.parquet: no such file"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the module is run again under another name
def test_a_wrong_name_is_one_line(mistake, told, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["recipes", *mistake, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("benchmarks.recipes", run_name="__main__")
    assert ended.value.code == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"benchmarks.recipes: {told}")
