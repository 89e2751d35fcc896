"""What a run tells its tracker, and whose run it may open; the fan-out is real, learner and tracker are not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mcpl.errors import BankMismatch, ConfigError
from mcpl.orchestration import record
from mcpl.orchestration.showing import sentence_of
from mcpl.tracking import base
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
