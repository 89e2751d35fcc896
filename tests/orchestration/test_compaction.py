"""Parts joined into compact files: the same rows, whatever dies in between and whoever commits again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mcpl.cli import app
from mcpl.data.bank import COMPARED_COLUMNS, Bank, encode
from mcpl.data.storage import LocalStore, open_store
from mcpl.errors import ConfigError
from mcpl.orchestration import fanout, plan
from mcpl.orchestration.compaction import compact
from mcpl.orchestration.fanout import Orders, work
from mcpl.orchestration.plan import Tally
from mcpl.orchestration.queue import Board, LockedBoard
from tests.orchestration import stub
from tests.orchestration.scenario import Scenario, eventually


@pytest.fixture
def scenario(tmp_path) -> Scenario:
    return Scenario(tmp_path)


def names(scenario: Scenario) -> list[str]:
    return sorted(path.name for path in (scenario.root / "bank").glob("part-*"))


def rows(scenario: Scenario):
    """The bank's rows as a reader sees them; every row of every file that counts, so doubles would show."""
    bank = Bank.open(scenario.root / "bank")
    table = bank.table(list(COMPARED_COLUMNS)).sort_by("id")
    assert len(table) == bank.summary().rows
    return table


def compacted(scenario: Scenario, shards: int = 2):
    config = scenario.config()
    sizes = [entry.size for entry in open_store(config.output).list("part-0")]
    return compact(config.output, round(shards * sum(sizes) / len(sizes)) if sizes else 1)


def test_a_compact_bank_holds_the_same_rows_in_fewer_files(scenario):
    scenario.pictures(19)
    scenario.run(scenario.config())
    before = scenario.compared()
    done = compacted(scenario)
    assert (done.files, done.joined, done.deleted, done.left, done.shards_per_file) == (2, 4, 4, 1, 2)
    assert names(scenario) == [
        "part-00000004.parquet",  # the last one is alone in its group
        "part-compact-00000000-00000001.parquet",
        "part-compact-00000002-00000003.parquet",
    ]
    assert rows(scenario).equals(before)
    bank = Bank.open(scenario.root / "bank")
    assert bank.ids() == [f"p{i:04d}" for i in range(19)]  # still in the order of the plan
    assert bank.row("p0013").learned.concepts[0].vectors.shape == (1, 64)
    assert bank.summary().parts == 3

    again = scenario.run(scenario.config())
    assert (again.new, again.resumed) == (0, 19)
    assert compacted(scenario).files == 0
    (scenario.root / "bank" / plan.TALLY).unlink()  # the outcomes are in the files too
    assert scenario.run(scenario.config()).learned == 19


def test_an_unfinished_run_keeps_its_incomplete_groups_and_goes_on(scenario):
    scenario.pictures(24)
    scenario.run(scenario.config())
    before = scenario.compared()
    (scenario.root / "bank" / "part-00000003.parquet").unlink()
    compacted(scenario)
    assert names(scenario) == [
        "part-00000002.parquet",
        "part-compact-00000000-00000001.parquet",
        "part-compact-00000004-00000005.parquet",
    ]
    summary = scenario.run(scenario.config())
    assert (summary.resumed, summary.new) == (20, 4)
    compacted(scenario, shards=6)  # the first time has fixed how many share a file
    assert len(names(scenario)) == 3 and rows(scenario).equals(before)


@pytest.mark.parametrize("verb", ["put_if_absent", "delete"])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_crash_at_any_moment_loses_and_doubles_nothing(scenario, monkeypatch, verb, after):
    scenario.pictures(24)
    scenario.run(scenario.config())
    before = scenario.compared()
    original, calls = getattr(LocalStore, verb), []

    def dying(self, *arguments):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(arguments)
        return original(self, *arguments)

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(LocalStore, verb, dying)
        compacted(scenario)
    assert rows(scenario).equals(before)
    assert scenario.run(scenario.config()).new == 0
    compacted(scenario)
    assert rows(scenario).equals(before)
    assert len(names(scenario)) == 3


def test_zombies_that_commit_after_compaction_count_for_nothing(scenario, monkeypatch):
    """Workers that fell silent and lost their leases; meanwhile the run ended and its parts were joined and deleted."""
    monkeypatch.setattr(fanout, "HEARTBEAT_SECONDS", 1e6)
    scenario.pictures(16)
    scenario.run(scenario.config("undisturbed"))
    undisturbed = scenario.compared("undisturbed")
    firsts = ["p0000", "p0004", "p0008"]
    scenario.tell(wait=firsts)
    config = scenario.config()
    healthy = Scenario(scenario.root / "healthy")
    healthy.tell()
    plan.open_plan(fanout.open_store(config.output), fanout.Dataset.open(config.dataset), config.recipe, 4)
    now = [0.0]
    board = LockedBoard(Board(config.output, clock=lambda: now[0]))
    orders = Orders(config.dataset, config.output, config.recipe, config.placement, stub.NAME)
    zombies = [threading.Thread(target=work, args=(board, rank, orders)) for rank in range(3)]
    for zombie in zombies:
        zombie.start()
    for id in firsts:
        eventually((scenario.stub_folder / f"waiting-{id}").exists)
    now[0] = 1000.0
    recipe = config.recipe.model_copy(update={"base": str(healthy.stub_folder)})
    work(board, 9, Orders(config.dataset, config.output, recipe, config.placement, stub.NAME))
    assert board.snapshot().counts.finished
    board.save()
    assert compacted(scenario).files == 2
    assert len(names(scenario)) == 2

    for id in firsts:
        (scenario.stub_folder / f"go-{id}").touch()
    for zombie in zombies:
        zombie.join(20)
    assert [name for name in names(scenario) if "compact" not in name] == [f"part-{n:08d}.parquet" for n in range(3)]
    assert rows(scenario).equals(undisturbed)
    assert board.snapshot().counts.committed == Tally(learned=16)
    assert Board(config.output).snapshot().counts.committed == Tally(learned=16)  # a queue made again from storage
    again = scenario.run(scenario.config().model_copy(update={"recipe": recipe}))
    assert (again.new, again.resumed) == (0, 16)
    assert compacted(scenario).deleted == 3  # swept away
    assert len(names(scenario)) == 2 and rows(scenario).equals(undisturbed)


def test_failures_inside_compact_files_are_found_and_learned_again(scenario):
    scenario.pictures(16)
    scenario.tell(fail=["p0001", "p0006", "p0013"])
    scenario.run(scenario.config())
    compacted(scenario)
    scenario.tell()
    summary = scenario.run(scenario.config(retry_failed=True))
    assert (summary.rows, summary.learned, summary.failed, summary.new) == (16, 16, 0, 3)
    assert compacted(scenario).files == 1  # the retries' own generation: three parts, two share a file
    bank = Bank.open(scenario.root / "bank")
    assert bank.summary().status == {"learned": 16}


def test_failures_are_found_though_their_parts_are_joined_after_the_listing(scenario, monkeypatch):
    scenario.pictures(16)
    scenario.tell(fail=["p0001", "p0006"])
    config = scenario.config()
    scenario.run(config)
    store = open_store(config.output)
    made = plan.read_plan(store)
    listed = plan.members

    def then_joined(store):
        found = listed(store)
        monkeypatch.setattr(plan, "members", listed)
        assert compacted(scenario).deleted == 4
        return found

    tallies = plan.read_tallies(store, made)
    monkeypatch.setattr(plan, "members", then_joined)
    retries = plan.add_retries(store, made, fanout.Dataset.open(config.dataset), tallies).generations[-1]
    assert [retries.shard(number).ids for number in retries.numbers] == [("p0001",), ("p0006",)]


def test_two_compactions_at_once_end_with_one_set_of_files(scenario):
    scenario.pictures(64)
    scenario.run(scenario.config())
    before = scenario.compared()
    with ThreadPoolExecutor(2) as pool:
        pair = [pool.submit(compacted, scenario) for _ in "ab"]
    done = [one.result(60) for one in pair]
    assert sum(one.files for one in done) >= 8
    compacted(scenario)
    assert len(names(scenario)) == 8 and rows(scenario).equals(before)


def test_a_part_with_other_rows_is_named_and_left(scenario):
    scenario.pictures(8)
    scenario.run(scenario.config())
    store = open_store(scenario.config().output)
    store.put("part-00000001.parquet", encode(list(Bank.open(scenario.root / "bank").rows())[:2]))
    with pytest.raises(ConfigError, match="part-00000001.parquet holds other rows"):
        compacted(scenario)
    assert len(names(scenario)) == 2


def test_the_command_says_what_it_did(scenario):
    from typer.testing import CliRunner

    scenario.pictures(8)
    scenario.run(scenario.config())
    done = CliRunner().invoke(app, ["bank", "compact", str(scenario.root / "bank")])
    assert done.exit_code == 0, done.output
    assert "2 parts joined into 1 new files, 2 deleted; 0 parts are left" in done.output
    nothing = CliRunner().invoke(app, ["bank", "compact", str(scenario.root / "nowhere")])
    assert isinstance(nothing.exception, ConfigError) and "holds no run" in str(nothing.exception)
