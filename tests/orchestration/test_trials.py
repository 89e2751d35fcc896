"""The search without Ray: what a space is, what a trial is worth, and that a restart forgets and doubles nothing."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from mcpl.config import Placement
from mcpl.data.bank import Bank
from mcpl.data.storage import open_store
from mcpl.errors import ConfigError
from mcpl.orchestration import sweep, tuning
from mcpl.orchestration.space import Knob, Space, read_space
from mcpl.orchestration.sweep_report import write_report
from mcpl.orchestration.trials import Result, Search, Trials, report
from mcpl.recipes import combined, load
from mcpl.tracking.base import NullRun, NullTracker
from pipelines import train_all
from tests.orchestration import sweep_stub
from tests.orchestration.scenario import Scenario


@pytest.fixture
def space_file(tmp_path):
    """changes -> a space over four pictures, learned by the stub in two packs with each of two seeds."""
    scenario = Scenario(tmp_path)
    scenario.pictures(4)
    scenario.tell()

    def write(**changes):
        values = {
            "recipe": "combined",
            "fixed": {"base": str(scenario.stub_folder)},
            "search": {
                "lr": {"low": 1e-5, "high": 1e-1, "log": True},
                "attention_mask.threshold": {"low": 0.3, "high": 0.7},
                "initializer": {"choices": ["neutral", "noun"]},
            },
            "dataset": str(tmp_path / "dataset"),
            "pack": 2,
            "startup": 3,
        }
        path = tmp_path / "space.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return path

    return write


def tried(search, space, number_of_packs=4, upto=None, runner=sweep_stub.NAME):
    """Ask for a trial and end it as the runner does."""
    asked = search.ask()
    reports = list(sweep.trial_reports(space, asked.values, asked.number, Placement(), runner))[:upto]
    last = reports[-1]
    state = "finished" if len(reports) == number_of_packs else "stopped"
    said = [{k: v for k, v in r.items() if k != "rows"} for r in reports]
    search.end(
        Result(
            asked.number, asked.values, state, last["score"], last["gain"], last["passes"], 1.0, "", said, last["rows"]
        )
    )
    return asked


def test_dots_reach_into_groups_and_the_start_is_the_recipes_own(space_file):
    space = read_space(space_file())
    own = {"lr": combined().lr, "attention_mask.threshold": combined().attention_mask.threshold, "initializer": "noun"}
    assert space.start_values == own
    made = space.recipe_of({"attention_mask.threshold": 0.4, "lr": 1e-2}, "mine")
    assert (made.attention_mask.threshold, made.lr, made.name) == (0.4, 1e-2, "mine")
    assert made.attention_mask.refine == combined().attention_mask.refine


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"search": {"lrr": {"low": 1, "high": 2}}}, "search.lrr.*lrr"),
        ({"search": {"terms.nothing.weight": {"low": 1, "high": 2}}}, "terms.nothing.weight"),
        ({"search": {"attention_mask.threshold": {"low": 0.3, "high": 1.7}}}, "search.attention_mask.threshold.*1.7"),
        ({"search": {"lr": {"low": 2, "high": 1}}}, "low < high"),
        ({"search": {"steps": {"low": 100, "high": 600, "step": 0.5}}}, "search.steps.*step .* whole"),
        ({"search": {"attention_mask.threshold": {"low": 0.3, "high": 0.7, "step": 0}}}, "step .* above 0"),
        ({"search": {"attention_mask.threshold": {"low": 0.3, "high": 0.7, "step": 0.5}}}, "at most high - low"),
        ({"search": {"initializer": {"choices": ["noun"], "step": 1}}}, "step lies in a range"),
        ({"sets": ["unnamed-2"]}, "either sets"),
        ({"split": "test"}, "split.*dev"),
    ],
)
def test_a_wrong_space_is_one_line_before_anything_is_learned(space_file, changes, says):
    with pytest.raises(ConfigError, match=says):
        read_space(space_file(**changes))


@pytest.mark.parametrize(
    ("knob", "inside", "outside"),
    [
        ({"low": 0.0, "high": 1.0, "step": 0.1}, [0.3, 0.7, 0.6000000000000001, 1.0], [0.35, 1.1]),
        ({"low": 0.05, "high": 0.65, "step": 0.2}, [0.45, 0.65], [0.3]),
        ({"low": 100, "high": 600, "step": 50}, [400], [401, 650]),
        ({"low": 1, "high": 4}, [3], [2.5]),
        ({"low": 1e-4, "high": 1e-2, "log": True}, [3e-4], [1e-1]),
    ],
)
def test_which_values_lie_in_a_range(knob, inside, outside):
    knob = Knob(**knob)
    assert all(map(knob.holds, inside)) and not any(map(knob.holds, outside))
    assert all(knob.distribution._contains(value) for value in inside)


def test_the_committed_spaces_hold_the_recipe_they_start_from():
    for path in (Path(__file__).parents[2] / "infra" / "sweeps").glob("*.yaml"):
        assert read_space(path).outside == {}


def test_a_start_that_is_not_in_the_space_is_no_trial(space_file, tmp_path):
    """`combined` starts from nouns; here trial 0 cannot."""
    space = read_space(
        space_file(search={"lr": {"low": 1e-5, "high": 1e-1, "log": True}, "initializer": {"choices": ["neutral"]}})
    )
    store = open_store(str(tmp_path / "sweep"))
    search = Search(Trials(store, space))
    assert tried(search, space).values == {"lr": combined().lr, "initializer": "neutral"}
    summary = write_report(store, space, search, lambda *_: None)
    text = (tmp_path / "sweep" / "report.md").read_text()
    assert summary["start"] is None and "The starting recipe is trial 00000" not in text
    assert "The starting recipe is not in the space (its initializer is noun)" in text


def test_a_trials_numbers_by_hand(space_file):
    space = read_space(space_file(objective={"right_object": 3, "assignment": 1}))
    good = {"status": "learned", "right_object": 0.5, "assignment": 1.0, "passes": 10}
    rows = [
        {**good, "fixed_noise_loss_step0": 2.0, "fixed_noise_loss": 1.0},
        {"status": "failed", "reason": "diverged"},
    ]
    said = report(rows, space)
    assert said["score"] == pytest.approx((3 * 0.25 + 1 * 0.5) / 4)
    assert said["gain"] == pytest.approx((0.5 - 1.0) / 2)
    assert said["passes"] == 10
    with pytest.raises(ConfigError, match="no picture has .*right_object.*from attention_iou"):
        report([{"status": "learned", "attention_iou": 0.5}], space)


def test_a_search_that_starts_again_goes_on(space_file, tmp_path):
    space = read_space(space_file())
    kept = Trials(open_store(str(tmp_path / "sweep")), space)
    search = Search(kept)
    first = [tried(search, space) for _ in range(4)]
    hanging = search.ask()  # and here the process dies
    assert first[0].values["lr"] == combined().lr, "the first trial is the starting recipe"

    again = Search(Trials(open_store(str(tmp_path / "sweep")), space))
    assert again.ask() == hanging, "what was asked and never ended is tried again, under its own number"
    after = [tried(again, space) for _ in range(3)]
    assert [asked.number for asked in after] == [5, 6, 7]
    values = [json.dumps(asked.values) for asked in [*first, hanging, *after]]
    assert len(set(values)) == 8, "nothing is drawn twice"
    assert sorted(kept.results()) == [0, 1, 2, 3, 5, 6, 7]
    with pytest.raises(ConfigError, match=r"another sweep \(space.seeds was 2 and is 3\)"):
        Trials(open_store(str(tmp_path / "sweep")), read_space(space_file(seeds=3)))


def test_a_sweep_is_that_of_its_recipe_and_its_pictures_not_of_their_paths(space_file, tmp_path, monkeypatch):
    """Files are edited under a sweep's feet; its command is given in another folder; a worker has none of them."""
    (tmp_path / "mine.yaml").write_text("lr: 2.0e-4\ninitializer: noun\n")
    monkeypatch.chdir(tmp_path)
    file = space_file(recipe="mine.yaml", dataset="dataset")
    store = open_store(str(tmp_path / "sweep"))
    Trials(store, read_space(file))
    orders = read_space(file).whole.model_dump(mode="json")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    there = Space(**orders)
    assert (
        there.recipe_of({}, "t").lr == 2e-4
        and len(list(sweep.trial_reports(there, {}, 0, Placement(), sweep_stub.NAME))) == 4
    )
    Trials(store, there)
    Trials(store, read_space(space_file(recipe=str(tmp_path / "mine.yaml"))))

    (tmp_path / "mine.yaml").write_text("lr: 1.0e-4\ninitializer: noun\n")
    with pytest.raises(ConfigError, match=r"another sweep \(recipe.lr was 0.0002 and is 0.0001\)"):
        Trials(store, read_space(space_file(recipe=str(tmp_path / "mine.yaml"))))
    Scenario(tmp_path).pictures(1, start=4)
    with pytest.raises(ConfigError, match=r"another sweep \(pictures was \w+ and is \w+\)"):
        Trials(store, there)


@pytest.mark.parametrize("cost", [False, True])
def test_the_report_names_what_is_best_and_what_mattered(space_file, tmp_path, cost):
    space = read_space(space_file(cost=cost, startup=30))  # at random: fANOVA takes a search's own path for a pattern
    store = open_store(str(tmp_path / "sweep"))
    kept = Trials(store, space)
    search = Search(kept)
    for number in range(30):
        tried(search, space, upto=2 if number == 5 else None)
    told = {}
    summary = write_report(store, space, Search(kept), lambda best, _, files: told.update({best.number: files}))
    results = kept.results()
    winner = max((r for r in results.values() if r.state == "finished"), key=lambda r: r.score)
    assert summary["best"]["number"] == winner.number
    assert (summary["finished"], summary["stopped"]) == (29, 1)
    assert max(summary["importances"], key=summary["importances"].get) == "lr", "the stub scores by lr alone"

    recipe = load(str(tmp_path / "sweep" / "best.yaml"))
    assert (
        recipe.lr == winner.values["lr"]
        and recipe.attention_mask.threshold == winner.values["attention_mask.threshold"]
    )
    assert recipe.seed == 0 and recipe.name == "combined-tuned"
    table = pq.read_table(tmp_path / "sweep" / "trials.parquet").to_pylist()
    assert [line["number"] for line in table] == list(range(30))
    assert table[winner.number]["lr"] == winner.values["lr"] and table[5]["state"] == "stopped"
    assert set(told[winner.number]) == {"best.yaml", "trials.parquet", "parallel.png", "slices.png", "report.md"}
    text = (tmp_path / "sweep" / "report.md").read_text()
    assert f"Best: trial {winner.number:05d}" in text and "The starting recipe is trial 00000" in text


def test_the_best_recipe_that_a_sweep_writes_learns_a_dataset(space_file, tmp_path, tiny_base_dir):
    small = {"base": str(tiny_base_dir), "steps": 2, "batch": 2, "probe_every": 1, "probe_timesteps": 1}
    on = {"dataset": None, "sets": ["named-2"], "pictures": 1, "seeds": 1, "samples": 0}
    space = read_space(space_file(fixed=small, objective={"assignment": 1}, **on))
    store = open_store(str(tmp_path / "sweep"))
    search = Search(Trials(store, space))
    for _ in range(2):
        tried(search, space, 1, runner=tuning.RUNNER)
    write_report(store, space, search, lambda *_: None)
    best, bank = str(tmp_path / "sweep" / "best.yaml"), str(tmp_path / "bank")
    given = ["--recipe", best, "--dataset", str(tmp_path / "dataset"), "--output", bank, "--tracker", "none"]
    with pytest.raises(SystemExit) as ended:
        train_all.app([*given, "--inline"])
    assert not ended.value.code
    learned = Bank.open(bank).summary()
    assert learned.status == {"learned": 4}
    assert learned.recipes == {f"combined-tuned {load(best).fingerprint}": 4}


def test_early_stopping_remembers_the_trials_of_before(space_file, tmp_path):
    """Three good trials ended before the restart: a bad newcomer stops at its first rung."""
    space = read_space(space_file())
    kept = Trials(open_store(str(tmp_path / "sweep")), space)
    for number in range(3):
        said = [{"packs": packs, "score": 0.9, "gain": 0.8} for packs in (1, 2, 3, 4)]
        kept.end(Result(number, {"lr": 1e-3}, "finished", 0.9, 0.8, 1, reports=said))
    asha = sweep._scheduler(space, 4, kept)
    newcomer = type("Trial", (), {"trial_id": "new"})
    asha.on_trial_add(None, newcomer)
    assert asha.on_trial_result(None, newcomer, {"packs": 1, "gain": 0.1}) == "STOP"
    better = type("Trial", (), {"trial_id": "better"})
    asha.on_trial_add(None, better)
    assert asha.on_trial_result(None, better, {"packs": 1, "gain": 0.9}) == "CONTINUE"


def test_a_trial_is_told_once_the_server_has_it_all(space_file, tmp_path, monkeypatch):
    """The server is away as trials end; the same command tells them, and then nobody twice."""
    space = read_space(space_file())
    store = open_store(str(tmp_path / "sweep"))
    search = Search(Trials(store, space))
    tried(search, space)
    ended = []

    class Voice(NullRun):
        delivered = False

        def finish(self, status="FINISHED"):
            ended.append(status)

    monkeypatch.setattr(NullTracker, "start", lambda self, *_, **__: Voice())
    again = {"trials": 1, "tracker": "none", "runner": sweep_stub.NAME}
    for delivered, ends in [(False, 2), (True, 2), (True, 1)]:  # the trial's own, and as the best that holds the report
        Voice.delivered = delivered
        ended.clear()
        sweep.run(space, str(tmp_path / "sweep"), **again)
        assert len(ended) == ends
        assert (tmp_path / "sweep" / "trials" / "00000" / "told").exists() == delivered


def test_a_trial_that_ends_while_the_server_is_away_is_not_told(space_file, tmp_path):
    space = read_space(space_file())
    kept = Trials(open_store(str(tmp_path / "sweep")), space)
    search = Search(kept)
    asked = search.ask()
    run = NullRun()
    run.delivered = False
    tracker = SimpleNamespace(start=lambda *_, **__: run)
    board = tuning.Board(tuple(space.search), lambda _: 4, {}, Console(quiet=True))
    record = sweep.SweepRecord(tracker, kept.store, space)
    following = tuning.Following(search, kept, record, board, lambda _: 4, threading.Event())
    trial = SimpleNamespace(config={"number": 0, "values": dict(asked.values)}, last_result={})
    following.on_trial_start(0, [], trial)
    following.on_trial_result(0, [], trial, {"packs": 4, "score": 0.5, "gain": 0.1, "passes": 8})
    following.on_trial_complete(0, [], trial)
    assert [result.number for result in kept.untold()] == [0]
    assert record.settle() == []
    run.settle = lambda: setattr(run, "delivered", True)
    assert record.settle() == [0], "it was back at the sweep's end"


@pytest.fixture
def screen():
    """A terminal of 100 by 30, and what stands on it after all that was printed."""
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=100, height=30)

    def shown() -> list[str]:
        frame = console.file.getvalue().rpartition("\x1b[2K")[2]
        return [" ".join(line.strip("│┃ ").replace("│", " ").split()) for line in frame.splitlines()]

    return console, shown


def result(number, state, score=None, reason="", packs=4):
    reports = [{"packs": packs, "score": score}] if packs else []
    return Result(number, {"lr": 1e-3 * (number + 1)}, state, score, score, score and 8.0, 1.0, reason, reports)


@pytest.mark.parametrize("word", ["trial", "cell"])
def test_a_terminal_shows_who_is_at_work_and_how_the_others_ended(screen, word):
    console, shown = screen
    before = {0: result(0, "finished", 0.5)}
    with tuning.Board(("lr",), lambda _: 4, before, console, word) as board:
        board.start(1, {"lr": 0.002})
        board.start(2, {"lr": 0.003})
        assert f"1 {word}s finished, 2 at work" in shown()
        assert "00001 at work 0/4 - - - 0.002" in shown()
        board.report(1, {"packs": 3, "score": 0.61, "gain": 0.2, "passes": 12.0})
        assert "00001 at work 3/4 0.610 0.200 12 0.002" in shown()
        board.end(result(1, "finished", 0.75))
        board.end(result(2, "failed", reason="out of memory", packs=0))
        board.start(3, {"lr": 0.004})
        board.end(result(3, "stopped", 0.1, packs=1))
        board.start(4, {"lr": 0.005})
    assert f"{word} 00002 failed: in 1 s; lr 0.003 (out of memory)\n" in console.file.getvalue(), "above the table"
    assert f"2 {word}s finished, 1 stopped early, 1 failed, 1 at work" in shown()
    rows = [line for line in shown() if line[:5].isdigit()]
    assert [row.split()[0] for row in rows] == ["00004", "00001", "00000", "00003", "00002"], "at work, then the best"
    assert rows[1:] == [
        "00001 finished 4/4 0.750 0.750 8 0.002", "00000 finished 4/4 0.500 0.500 8 0.001",
        "00003 stopped 1/4 0.100 0.100 8 0.004", "00002 failed 0/4 - - - 0.003",
    ]  # fmt: skip


def test_a_table_that_is_full_keeps_those_at_work_and_the_best(screen):
    console, shown = screen
    with tuning.Board(("lr",), lambda _: 4, {n: result(n, "finished", n / 100) for n in range(40)}, console) as board:
        for number in (50, 51, 52):
            board.start(number, {"lr": 0.1})
    numbers = [int(line[:5]) for line in shown() if line[:5].isdigit()]
    assert numbers == [50, 51, 52, *range(39, 30, -1)]
    assert "40 trials finished, 3 at work" in shown()


def test_a_dataset_without_pictures_is_one_line(space_file, tmp_path):
    space = read_space(space_file())
    (only,) = (tmp_path / "dataset").iterdir()
    pq.write_table(pq.read_table(only).slice(0, 0), only)
    with pytest.raises(ConfigError, match="dataset: the dataset has no rows"):
        sweep.run(space, str(tmp_path / "sweep"), 1, tracker="none", runner=sweep_stub.NAME)
    assert not (tmp_path / "sweep").exists()
