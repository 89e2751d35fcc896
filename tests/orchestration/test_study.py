"""A study without Ray: nothing is learned twice, what the report says follows from the rows and is right."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import results_follow
from mcpl.config import Placement
from mcpl.data.storage import open_store
from mcpl.errors import ConfigError
from mcpl.orchestration import study as module
from mcpl.orchestration import study_report as report
from mcpl.orchestration.trials import Result, Trials
from mcpl.studies import Size, build
from tests.orchestration import sweep_stub
from tests.orchestration.scenario import Scenario


@pytest.fixture
def asked(tmp_path):
    """A study of four pictures that the stub learns, and its folder."""
    scenario = Scenario(tmp_path)
    scenario.pictures(4)
    scenario.tell()
    size = Size(pictures=4, seeds=2, samples=0)
    return build("temperature", size, base=str(scenario.stub_folder), dataset=str(tmp_path / "dataset")), scenario


def learn(study, number, store):
    return list(module.cell_reports(study, number, store, Placement(pack=6), sweep_stub.NAME))


def test_packs_that_are_kept_are_never_learned_again(asked, tmp_path):
    study, scenario = asked
    store = open_store(str(tmp_path / "out"))
    killed = module.cell_reports(study, 3, store, Placement(pack=6), sweep_stub.NAME)
    next(killed)  # and here the process dies
    reports = learn(study, 3, store)
    assert [said["packs"] for said in reports] == [1, 2]
    assert set(scenario.times_learned().values()) == {2}, "each picture once with each of two seeds"
    rows = module.kept_rows(store, 3)
    assert sorted((row["id"], row["seed"]) for row in rows) == [(f"p{i:04d}", s) for i in range(4) for s in (0, 1)]
    assert rows[0]["recipe_fingerprint"] == module.adjust(study.works[3][0].recipe, seed=0).fingerprint
    learn(study, 3, store)
    assert set(scenario.times_learned().values()) == {2}


def test_what_another_study_learned_is_taken(asked, tmp_path):
    """A study grows by two pictures and a seed; only these are learned, and the lines are those of a study that learned
    all of it."""
    small, scenario = asked
    small = small.model_copy(update={"cells": small.cells[2:]})
    scenario.pictures(2, start=4)
    first, second = (open_store(str(tmp_path / name)) for name in ("first", "second"))
    Trials(first, module.StudyPlan(small))
    for number in range(len(small.works)):
        learn(small, number, first)
    report.write_report(first, small, {n: module.kept_rows(first, n) for n in range(len(small.works))})
    before = scenario.times_learned()
    assert set(before.values()) == {2 * len(small.works)}

    large = small.model_copy(update={"pictures": 6, "seeds": 3, "pack": 4})
    known = module.Known(large, [str(tmp_path / "first")])
    list(module.cell_reports(large, 0, second, Placement(pack=4), sweep_stub.NAME, known))
    assert scenario.times_learned() - before == {**dict.fromkeys(small_ids(4), 1), "p0004": 3, "p0005": 3}
    rows = module.kept_rows(second, 0)
    assert [(row["seed"], row["id"]) for row in rows] == [(seed, id) for seed in range(3) for id in small_ids(6)]
    list(module.cell_reports(large, 0, open_store(str(tmp_path / "alone")), Placement(pack=4), sweep_stub.NAME))
    alone = module.kept_rows(open_store(str(tmp_path / "alone")), 0)
    assert [untimed(row) for row in rows] == [untimed(row) for row in alone]


def small_ids(count):
    return [f"p{number:04d}" for number in range(count)]


def untimed(row):
    """A line without how long it took, and without what it does not have."""
    return {name: value for name, value in row.items() if name != "seconds" and value is not None}


def test_a_study_that_was_killed_gives_what_it_kept(asked, tmp_path):
    study, scenario = asked
    store = open_store(str(tmp_path / "killed"))
    Trials(store, module.StudyPlan(study))
    next(module.cell_reports(study, 2, store, Placement(pack=6), sweep_stub.NAME))  # one of two seeds, and no report
    known = module.Known(study, [store.uri])
    before = scenario.times_learned()
    for number in (1, 2):
        list(module.cell_reports(study, number, open_store(str(tmp_path / "b")), Placement(), sweep_stub.NAME, known))
    assert scenario.times_learned() - before == dict.fromkeys(small_ids(4), 3), "two seeds of cell 1, one of cell 2"


def test_words_of_another_base_or_recipe_are_not_taken(asked, tmp_path):
    small, scenario = asked
    store = open_store(str(tmp_path / "first"))
    Trials(store, module.StudyPlan(small))
    learn(small, 0, store)
    report.write_report(store, small, {0: module.kept_rows(store, 0)})
    known = module.Known(small, [store.uri])
    before = scenario.times_learned()
    list(module.cell_reports(small, 1, open_store(str(tmp_path / "b")), Placement(pack=6), sweep_stub.NAME, known))
    assert sum((scenario.times_learned() - before).values()) == 8, "cell 1 is another recipe than cell 0"
    scenario.tell(digest="another")
    list(module.cell_reports(small, 0, open_store(str(tmp_path / "c")), Placement(pack=6), sweep_stub.NAME, known))
    assert sum((scenario.times_learned() - before).values()) == 16


def test_a_study_that_measured_something_else_is_refused(asked, tmp_path):
    small, _ = asked
    store = open_store(str(tmp_path / "first"))
    with pytest.raises(ConfigError, match=r"first holds no study.json: give the folder of a study"):
        module.Known(small, [str(tmp_path / "first")])
    Trials(store, module.StudyPlan(small))
    other = small.model_copy(update={"samples": 2, "measures": ("maps",)})
    with pytest.raises(ConfigError, match=r"first is of other samples, measure maps: nothing of it can be taken"):
        module.Known(other, [str(tmp_path / "first")])
    with pytest.raises(ConfigError, match=r"of other pictures"):
        module.Known(build("temperature", Size(samples=0)), [str(tmp_path / "first")])


def test_a_folder_holds_one_study(asked, tmp_path):
    study, _ = asked
    store = open_store(str(tmp_path / "out"))
    Trials(store, module.StudyPlan(study))
    Trials(store, module.StudyPlan(study))
    with pytest.raises(ConfigError, match=r"another study \(study.seeds was 2 and is 3\)"):
        Trials(store, module.StudyPlan(study.model_copy(update={"seeds": 3})))
    first, *others = study.cells
    lr = first.recipe.lr
    changed = first.model_copy(update={"recipe": first.recipe.model_copy(update={"lr": 2 * lr})})
    with pytest.raises(ConfigError, match=rf"another study \(cells.0 .*\.recipe\.lr was {lr} and is {2 * lr}\)"):
        Trials(store, module.StudyPlan(study.model_copy(update={"cells": (changed, *others)})))
    with pytest.raises(ConfigError, match="another study"):
        Trials(store, module.StudyPlan(study.model_copy(update={"cells": (*others, first)})))


def test_a_changed_sentence_is_the_same_study(asked, tmp_path):
    """It goes on with what was learned, and its report says the new sentence."""
    study, _ = asked
    store = open_store(str(tmp_path / "out"))
    kept = Trials(store, module.StudyPlan(study))
    kept.end(Result(0, {"cell": study.cells[0].name}, "finished"))
    said = study.model_copy(update={"question": "Asked better?", "notes": ("A note.",), "figures": ()})
    assert set(Trials(store, module.StudyPlan(said)).results()) == {0}
    again = report.study_of(store.get("study.json"))
    assert (again.question, again.notes, again.figures) == ("Asked better?", ("A note.",), ())


def test_a_cell_that_failed_is_told_and_asked_again(asked, tmp_path):
    study, _ = asked
    kept = Trials(open_store(str(tmp_path / "out")), module.StudyPlan(study))
    grid = module.Grid(kept, study)
    first, second = grid.ask(), grid.ask()
    assert not grid.end(Result(first.number, first.values, "failed", reason="no luck"))
    assert grid.end(Result(second.number, second.values, "finished"))
    assert grid.failed == {first.values["cell"]: "no luck"} and grid.left == 8
    again = module.Grid(kept, study)
    assert again.left == 9 and again.ask() == first


def test_uses_of_the_test_split_are_noted(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pipelines/study.py", "ablation", "--split", "test"])
    store = open_store(str(tmp_path))
    module.log_use(store)
    module.log_use(store)
    lines = (tmp_path / "test-split.md").read_text().splitlines()
    assert len(lines) == 6 and lines[-1].endswith("`python pipelines/study.py ablation --split test` |")


def test_uses_of_the_test_split_name_no_password(tmp_path, monkeypatch):
    command = ["pipelines/study.py", "ablation", "--tracking-uri", "http://ann:secret@server:5000/?token=hidden&a=b"]
    monkeypatch.setattr("sys.argv", command)
    module.log_use(open_store(str(tmp_path)))
    noted = (tmp_path / "test-split.md").read_text()
    assert "server:5000" in noted and "secret" not in noted and "hidden" not in noted


def rows_of(study, values):
    """Rows as trials keep them: cell -> values[seed][picture]; written and read again."""
    rows = {}
    for number, (cell, *_) in enumerate(study.works):
        rows[number] = [
            {
                "id": f"{cell.set}-dev-{picture:04d}", "seed": seed, "status": "learned", "base": "scenes-v1",
                "base_digest": "d", "commit": "c", "hardware": "h", "passes": 10, **one,
            }
            for seed, pictures in enumerate(values(cell))
            for picture, one in enumerate(pictures)
        ]  # fmt: skip
    return report.read_raw(report.raw(study, rows))


def test_effects_by_hand():
    """assignment = .1 mask + .2 CL + .3 bind (only with CL) - .05 mask x CL, on every picture; at the other rate .7."""
    study = build("ablation", Size(seeds=1))

    def value(cell):
        mask, contrastive, bind, rate = cell.levels.values()
        if rate == 0.01:
            return [[{"assignment": 0.7} for _ in range(5)]]
        score = 0.3 + 0.1 * mask + 0.2 * contrastive + 0.3 * bind * contrastive - 0.05 * mask * contrastive
        return [[{"assignment": score + 0.01 * picture} for picture in range(5)]]

    text = report.markdown(study, rows_of(study, value))
    own, other = text[text.index("### rate 0.001") :].split("### rate 0.01")
    assert "| mask | +0.000 [all alike] |" in other
    found = {line.split(" | ")[0].strip("| "): line for line in own.splitlines()}
    for effect, told in {
        "mask": "+0.075", "CL": "+0.325", "bind": "+0.300", "mask x CL": "-0.050", "CL x bind": "+0.300",
        "mask x CL x bind": "+0.000", "all together": "+0.550", "sum of each alone": "+0.300",
        "together minus the sum": "+0.250",
    }.items():  # fmt: skip
        assert f"| {told} [all alike] |".replace("-0.000", "+0.000") in found[effect].replace("-0.000", "+0.000")
    assert "| mask + bind at 0.001 | 5 | 0.420 [" in text
    assert "| mask + CL + bind at 0.001 | nothing at 0.001 | +0.550 [" in text


@pytest.mark.parametrize("pictures", [8, 9])
def test_cells_that_are_one_recipe_are_one_test(pictures):
    """Ten of the ablation's fourteen differences are tests of their own. Nine signs that agree have a chance of 2/2^9,
    times ten under .05; times fourteen, or with eight signs, not."""
    study = build("ablation", Size(seeds=1))
    rows = rows_of(study, lambda cell: [[{"assignment": 0.5 + 0.1 * cell.levels["mask"]}] * pictures])
    text = report.markdown(study, rows)
    found = {line.split(" | ")[0].strip("| "): line for line in text.split("## Against")[1].splitlines()}
    sign = "+0.100 [all alike]"
    for cell in ("mask at 0.01", "mask + bind at 0.01", "mask + CL at 0.001"):
        assert f"| **{sign}** |" in found[cell] if pictures == 9 else f"| {sign} |" in found[cell]
    assert "+0.000" in found["bind at 0.01"]
    assert ("nothing here can be bold" in text) == (pictures == 8)


def test_a_cell_is_compared_with_more_than_its_reference():
    """Three cells worth .2, .5 and .6; the third is told against the first, as all are, and against the second."""
    study = build("ablation", Size(seeds=1))
    worth = {"nothing at 0.01": 0.2, "CL at 0.01": 0.5, "mask at 0.01": 0.6}
    pairs = (("mask at 0.01", "CL at 0.01"),)
    study = study.model_copy(update={"cells": tuple(map(study.cell, worth)), "pairs": pairs, "sections": ()})
    text = report.markdown(study, rows_of(study, lambda cell: [[{"assignment": worth[cell.name]}] * 9]))
    assert "| mask at 0.01 | nothing at 0.01 | **+0.400 [all alike]** |" in text
    assert "| mask at 0.01 | CL at 0.01 | **+0.100 [all alike]** |" in text
    refused = {"masks": "pairs name what is no cell: masks", "CL at 0.01": "itself", "mask at 0.01": "twice"}
    for first, why in refused.items():
        with pytest.raises(ValueError, match=why):
            type(study)(**study.model_dump() | {"pairs": ((first, "CL at 0.01"), *pairs)})


def test_cells_that_share_no_picture_are_no_test():
    """Eight signs carry the five differences of one rate, not ten; nor is anything said where nothing is compared."""
    study = build("ablation", Size(seeds=1))

    def value(cell, count):
        good = [{"assignment": 0.5 + 0.1 * cell.levels["mask"]}] * count
        away = cell.levels["rate"] == 0.01 and (cell.levels["mask"] or cell.levels["CL"])
        return [[{"status": "skipped"}] * count + good if away else good]

    text = report.markdown(study, rows_of(study, lambda cell: value(cell, 8)))
    assert "| **+0.100 [all alike]** |" in text and "can be bold" not in text
    alike = [
        row
        for row in rows_of(study, lambda cell: value(cell, 4))
        if row["cell"] in ("nothing at 0.001", "bind at 0.001")
    ]
    assert "can be bold" not in report.markdown(study, alike)
    nothing = rows_of(study, lambda cell: [[{"status": "skipped"}]])
    assert "can be bold" not in report.markdown(study, nothing)


@pytest.mark.parametrize("finished", ["the cell of weight 0", "no cell of the curves"])
def test_a_report_of_the_first_cells_that_finished(finished):
    """A logarithmic axis has no place for 0 alone, and a figure without a cell is left out."""
    study = build("weights", Size(seeds=1))
    figure = study.figures[0]
    zero = next(cell for cell in study.cells if figure.log and cell.levels.get(figure.x) == 0)
    rows = [row for row in rows_of(study, lambda _: [[{"assignment": 0.5}]]) if row["cell"] == zero.name]
    if finished == "no cell of the curves":
        rows = [row | {"cell": "nobody's"} for row in rows]
    drawn = dict(report.pictures(study, rows))
    assert all(min(picture.size) > 100 for picture in drawn.values())
    assert ("figure-1-curves.png" in drawn) == (finished == "the cell of weight 0")


def test_words_that_diverged_hit_nothing_and_other_failures_are_left_out():
    study = build("ablation", Size(seeds=1))

    def value(cell):
        good = {"assignment": 1.0}
        if cell.name == "nothing at 0.01":
            lost = {"status": "failed", "reason": "learning diverged (numbers are not finite) at lr 1: lower it"}
            return [[good, lost, {"status": "failed", "reason": "no picture"}]]
        return [[good] * 3]

    rows = rows_of(study, value)
    assert report.scores(study, rows, "assignment")["nothing at 0.01"] == {"dev-0000": 1.0, "dev-0001": 0.0}
    text = report.markdown(study, rows)
    assert "Left out in bind at 0.01, nothing at 0.01: no picture" in text and "diverged |" in text


def test_fidelity_is_the_mean_over_pairs_of_other_seeds():
    study = build("baselines", Size(seeds=2))
    angles = {"ground truth": (0.0, 0.4), "one": (0.1, 0.3)}

    def value(cell):
        turned = angles.get(cell.levels["row"], (1.0, 1.0))
        return [
            [{"words": ["heart"], "states": [[2 * np.cos(a), 2 * np.sin(a)]], "features": [[np.cos(a) / 2, 0.0]]}]
            for a in turned
        ]

    rows = rows_of(study, value)
    found = report.scores(study, rows, "prompt_fidelity")
    assert found["ground truth, natural"]["dev-0000"] == pytest.approx(np.cos(0.4), abs=1e-6)
    assert found["one, natural"]["dev-0000"] == pytest.approx((np.cos(0.1 - 0.4) + np.cos(0.3 - 0.0)) / 2, abs=1e-6)
    image = report.scores(study, rows, "image_fidelity")["one, natural"]["dev-0000"]
    assert image == pytest.approx((np.cos(0.1) * np.cos(0.4) + np.cos(0.3) * np.cos(0.0)) / 8, abs=1e-6)
    text = report.markdown(study, rows)
    assert "### natural" in text and "### medical" in text and "| noise ceiling | 0.921" in text
    assert "Spearman: prompt fidelity with BERT" in text


def committed(folder, study, rows):
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(module.StudyPlan(study).identity))
    (folder / report.RAW).write_bytes(report.raw(study, rows))
    (folder / report.REPORT).write_text(report.markdown(study, report.read_raw((folder / report.RAW).read_bytes())))


def test_a_committed_report_that_no_longer_follows_is_found(tmp_path):
    study = build("threshold", Size(seeds=1))
    rows = {
        number: [
            {"id": f"unnamed-2-dev-{p:04d}", "seed": 0, "status": "learned", "assignment": p / 7, "base_digest": "old"}
            for p in range(4)
        ]
        for number in range(len(study.works))
    }
    folder = tmp_path / "studies" / "threshold"
    committed(folder, study, rows)
    assert results_follow.faults(tmp_path) == ([], 1)
    assert results_follow.stale(tmp_path, "old") == []
    (told,) = results_follow.stale(tmp_path, "new")
    assert told.endswith("raw.parquet: base old")

    text = (folder / report.REPORT).read_text()
    (folder / report.REPORT).write_text(text.replace("0.214", "0.314"))
    assert text.count("0.214") and results_follow.faults(tmp_path)[0] == [
        f"{folder / report.REPORT} does not follow from raw.parquet"
    ]
    assert folder / report.REPORT in list(results_follow.make_again(tmp_path))
    assert results_follow.faults(tmp_path) == ([], 1) and (folder / report.REPORT).read_text() == text
    assert list(results_follow.make_again(tmp_path)) == []


def test_a_committed_use_of_the_test_split_must_be_noted(tmp_path):
    study = build("threshold", Size(seeds=1), split="test")
    rows = {n: [{"id": "unnamed-2-test-0000", "seed": 0, "status": "learned", "assignment": 1.0}] for n in range(18)}
    committed(tmp_path / "studies" / "threshold", study, rows)
    (told,) = results_follow.faults(tmp_path)[0]
    assert "use of the test split" in told
    (tmp_path / "test-split.md").write_text("`python pipelines/study.py threshold --split test`")
    assert results_follow.faults(tmp_path)[0] == []


def test_what_is_committed_follows():
    """Every table of a known kind under docs/results from its raw rows, byte by byte."""
    from pathlib import Path

    found, checked = results_follow.faults(Path(__file__).parents[2] / "docs" / "results")
    assert not found and checked
