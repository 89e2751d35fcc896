"""What a run tells its tracker, and whose run it may open; the fan-out is real, learner and tracker are not."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace

import pytest

from mcpl.data import scores
from mcpl.data.bank import Bank
from mcpl.data.dataset import Dataset
from mcpl.data.scores import ScoreRow
from mcpl.data.storage import Store, open_store
from mcpl.errors import BankMismatch, ConfigError
from mcpl.orchestration import record
from mcpl.orchestration.compaction import compact
from mcpl.orchestration.showing import sentence_of
from mcpl.tracking import base
from mcpl.tracking.registry import NotPromoted, Published
from pipelines import train_all
from tests.orchestration import stub
from tests.orchestration.scenario import Scenario


class ListeningRun(base.NullRun):
    listens = True


class Listener(base.NullTracker):
    """Remembers how often it was opened and how each run ended."""

    def __init__(self, **_: object) -> None:
        self.ended: list[str] = []
        OPENED.append(self)

    def start(self, *_: object, **__: object) -> base.Run:
        run = ListeningRun()
        run.finish = self.ended.append
        return run


OPENED: list[Listener] = []


@pytest.fixture
def scenario(tmp_path, monkeypatch) -> Scenario:
    OPENED.clear()
    monkeypatch.setitem(base.TRACKERS, "listener", f"{__name__}:Listener")
    return Scenario(tmp_path)


def learn(config):
    return record.learn_dataset(config, tracker="listener", runner=stub.NAME, inline=True)


def test_a_run_is_opened_and_ends_as_finished(scenario):
    scenario.pictures(4)
    assert learn(scenario.config()).learned == 4
    assert [tracker.ended for tracker in OPENED] == [["FINISHED"]]


def test_the_run_carries_a_page_of_a_bounded_number_of_pictures(scenario, monkeypatch):
    kept = {}
    monkeypatch.setattr(base.NullRun, "artifact", lambda run, source, name: kept.__setitem__(name, source))
    monkeypatch.setattr(record, "PAGE_PICTURES", 3)
    scenario.pictures(5)
    learn(scenario.config())
    page = kept["report/index.html"].decode()
    assert (
        "The first 3 of 5 pictures" in page and page.count("data:image/webp") == 3 and "bank, learned with test" in page
    )


@pytest.mark.parametrize("spool", ["kept", "lost with its pod"])
def test_what_the_tracker_missed_at_the_end_is_told_by_the_same_command_once(
    scenario, bucket, tmp_path, migrated, monkeypatch, spool
):
    """The output is an object store, so the spool lies in the driver's working directory."""
    from mlflow import MlflowClient

    from mcpl.tracking import mlflow as tracking

    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.0)
    shutil.copyfile(migrated, tmp_path / "mlflow.db")
    scenario.pictures(4)
    config = scenario.config(f"{bucket}/bank").model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"})
    times = []

    def tell(run: base.Run, store: Store, dataset: Dataset) -> None:
        times.append(1)
        run.metrics({"rows": len(Bank.open(store.uri))})
        run.artifact(b"rows", "notes/rows.txt")
        run.tags({"told": "yes"})

    def gone(*_: object, **__: object) -> None:
        raise ConnectionError("gone")

    def learn_in(folder: str) -> int:
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        summary = record.learn_dataset(config, runner=stub.NAME, inline=True)
        gc.collect()  # as where the process ends: its lock on the spool goes
        return summary.new

    with monkeypatch.context() as away:

        def tell_nobody(*told) -> None:
            for verb in ("log_batch", "log_artifact", "set_terminated", "search_experiments"):
                away.setattr(MlflowClient, verb, gone)
            tell(*told)

        away.setattr(record, "_tell", tell_nobody)
        assert learn_in("first") == 4
    assert list((tmp_path / "first" / "mlflow-spool").iterdir())

    monkeypatch.setattr(record, "_tell", tell)
    again = "first" if spool == "kept" else "second"
    assert learn_in(again) == 0
    client = MlflowClient(config.tracking_uri)
    (run,) = client.search_runs([client.get_experiment_by_name("mcpl").experiment_id])
    assert (run.info.status, run.data.tags["told"]) == ("FINISHED", "yes")
    assert [point.value for point in client.get_metric_history(run.info.run_id, "rows")] == [4]
    assert "notes" in {kept.path for kept in client.list_artifacts(run.info.run_id)}
    assert not list((tmp_path / again).glob("mlflow-spool/*"))

    told = len(times)
    assert learn_in(again) == 0
    assert len(times) == told, "nothing to do, and nothing to tell"


@pytest.mark.parametrize("name", ["part-00000000.parquet", "_mcpl/run.json"])
def test_a_run_is_told_without_scores_that_cannot_be_read(scenario, caplog, name):
    scenario.pictures(4)
    learn(scenario.config())
    store = open_store(scenario.config().output)
    store.delete(record.TOLD)
    store.put("_scores/some/_mcpl/run.json", b'{"created": "2026", "recipe": {}}')
    store.put(f"_scores/some/{name}", b"cut short")
    learn(scenario.config())
    assert [tracker.ended for tracker in OPENED] == [["FINISHED"]] * 2
    assert caplog.text.count("told without later scores") == 1


def test_failures_learned_again_are_told_though_the_pictures_are_as_many(scenario, monkeypatch):
    tells = []
    monkeypatch.setattr(record, "_tell", lambda *_: tells.append(1))
    scenario.pictures(4)
    scenario.tell(fail=["p0001"])
    learn(scenario.config())
    scenario.tell()
    monkeypatch.setattr(ListeningRun, "delivered", False)
    learn(scenario.config(retry_failed=True))
    monkeypatch.setattr(ListeningRun, "delivered", True)
    learn(scenario.config())
    learn(scenario.config())
    assert len(tells) == 3


def test_a_bank_that_is_compacted_while_it_is_told_is_kept_with_the_run(scenario, monkeypatch):
    kept, listed = {}, record.members
    monkeypatch.setattr(base.NullRun, "artifact", lambda run, source, name: kept.__setitem__(name, source))

    def then_joined(store: Store):
        found = listed(store)
        monkeypatch.setattr(record, "members", listed)
        compact(store.uri, 1 << 20)
        return found

    monkeypatch.setattr(record, "members", then_joined)
    scenario.pictures(8)
    assert learn(scenario.config()).learned == 8
    name = "part-compact-00000000-00000001.parquet"
    assert kept[f"bank/{name}"] == open_store(scenario.config().output).get(name)
    assert json.loads(kept["bank/bank.json"])["bytes"] == len(kept[f"bank/{name}"])


def test_a_version_names_its_dataset_the_same_whoever_publishes_it(scenario, monkeypatch):
    """Else a promotion is refused for another dataset that is none."""
    scenario.pictures(1)
    monkeypatch.chdir(scenario.root)
    told = []
    monkeypatch.setattr(record, "publish", lambda *_, dataset, **__: told.append(dataset) or Published("words", 1))
    config = scenario.config().model_copy(update={"dataset": "dataset"})
    train_all.train_all(config, publish="words", tracker="none", runner=stub.NAME, inline=True)
    record.publish_bank(config.output, "words")
    assert told == [str(scenario.root / "dataset")] * 2


def test_words_that_are_not_better_than_the_champions_end_the_run_with_a_code_of_their_own(
    scenario, monkeypatch, capsys
):
    scenario.pictures(2)

    def refuse(*_, better_on, **__):
        raise NotPromoted(f"worse on {' and '.join(better_on)}")

    monkeypatch.setattr(record, "publish", refuse)
    asked = {"publish": "words", "better_on": "right_object,assignment", "tracker": "none", "inline": True}
    assert train_all.train_all(scenario.config(), runner=stub.NAME, **asked) == 5
    assert "worse on right_object and assignment" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="needs --publish"):  # before anything is learned, not after
        train_all.train_all(scenario.config(), runner=stub.NAME, **asked | {"publish": ""})
    assert Bank.open(scenario.config().output).summary().status == {"learned": 2}


def test_nothing_is_published_where_too_many_pictures_failed(scenario, monkeypatch, capsys):
    monkeypatch.setattr(record, "publish", lambda *_, **__: pytest.fail("published"))
    scenario.pictures(4)
    scenario.tell(fail=["p0001", "p0002"])
    asked = {"publish": "words", "tracker": "none", "inline": True, "runner": stub.NAME}
    assert train_all.train_all(scenario.config(), **asked) == 3
    assert "2 of 4 pictures failed" in (told := capsys.readouterr().err) and "nothing is published" in told
    monkeypatch.setattr(record, "publish", lambda *_, **__: Published("words", 1))
    assert train_all.train_all(scenario.config(max_failed_share=0.5), **asked) == 0
    assert "published as words version 1" in capsys.readouterr().out


def test_a_guard_that_names_no_score_is_an_error_before_anything_is_learned(scenario):
    scenario.pictures(2)
    asked = {"publish": "words", "better_on": "right_object,rigth_object", "tracker": "none", "inline": True}
    with pytest.raises(ConfigError, match=r"--better-on rigth_object: no such score; there are .*right_object"):
        train_all.train_all(scenario.config(), runner=stub.NAME, **asked)
    assert not (scenario.root / "bank").exists()


def test_what_is_published_carries_the_scores_that_came_later(scenario, monkeypatch):
    scenario.pictures(2)
    learn(scenario.config())
    store = open_store(scenario.config().output)
    later = [
        ScoreRow(row.id, "learned", row.provenance.key, "some", row.provenance.base_digest, metrics={"leak": 0.25})
        for row in Bank.open(store.uri).rows()
    ]
    store.put("_scores/some/_mcpl/run.json", b'{"created": "2026", "recipe": {}}')
    store.put("_scores/some/part-00000000.parquet", scores.encode(later))
    told = []
    monkeypatch.setattr(record, "publish", lambda rows, *_, **__: told.extend(rows) or Published("words", 1))
    record.publish_bank(store.uri, "words")
    assert [row.metrics["leak"] for row in told] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("output", "named", "tracker", "said"),
    [
        ("s3://bucket/bank", None, "listener", False),
        ("s3://bucket/bank", None, "mlflow", True),
        ("s3://bucket/bank", "http://server:5000", "mlflow", False),
        ("bank", None, "mlflow", False),
    ],
)
def test_a_database_in_the_working_directory_is_told(scenario, monkeypatch, capsys, output, named, tracker, said):
    monkeypatch.setitem(base.TRACKERS, "mlflow", base.TRACKERS["listener"])
    monkeypatch.chdir(scenario.root)
    for variable in (False, True) if named else (False,):
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        if variable:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", named)
        record.tracker_for(open_store(output), tracker, None if variable else named, "mcpl")
    told = capsys.readouterr().err
    assert (f"kept in sqlite:///{scenario.root}/mlflow.db" in told and "--tracking-uri" in told) == said
    assert told.count("\n") == said


def test_another_bases_output_is_refused_before_its_run_is_opened(scenario):
    scenario.pictures(4)
    config = scenario.config()
    learn(config)
    other = scenario.root / "other"
    other.mkdir()
    (other / "settings.json").write_text(json.dumps({"digest": "other"}))
    for pictures in (0, 4):  # nothing left to do, and something
        if pictures:
            scenario.pictures(pictures, start=4)
        moved = config.model_copy(update={"recipe": config.recipe.model_copy(update={"base": str(other)})})
        with pytest.raises(BankMismatch, match="other"):
            learn(moved)
    assert len(OPENED) == 1, "the first base's run stays as it ended"
    assert len(scenario.compared()) == 4


def test_a_mistyped_base_leaves_nothing_behind(scenario):
    scenario.pictures(4)
    config = scenario.config()
    with pytest.raises(ConfigError, match="--model nowhere"):
        learn(config.model_copy(update={"recipe": config.recipe.model_copy(update={"base": "nowhere"})}))
    assert not OPENED and not (scenario.root / "bank").exists()


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("a brown <bear> on a <board>", [0, 1]),
        ("a brown <bear:toy> on a <board>", [0, 1]),
        ("a bear on a board", [0, 1]),
        ("a <bear> on a <board> by a <bear>", [0, 1, 0]),  # marks may repeat where the words were listed
    ],
)
def test_a_rows_sentence_is_read_as_it_was_learned(scenario, text, roles):
    scenario.pictures(1)
    scenario.run(scenario.config())
    row = next(record.Bank.open(scenario.root / "bank").rows())
    read = sentence_of(replace(row, text=text))
    assert [word.concept for word in read.words if word.role == "placeholder"] == roles
