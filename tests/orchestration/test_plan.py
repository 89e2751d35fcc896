"""The plan: fixed parts, one recipe and base per output, growth and retries as generations."""

from __future__ import annotations

import dataclasses

import pyarrow.parquet as pq
import pytest

from mcpl.config import Recipe
from mcpl.data.bank import encode
from mcpl.data.dataset import Dataset
from mcpl.data.storage import open_store
from mcpl.errors import BankMismatch, ConfigError
from mcpl.orchestration import plan as plans
from mcpl.orchestration.plan import Tally
from mcpl.types import BankRow
from tests.orchestration.scenario import Scenario
from tests.orchestration.stub import Runner


@pytest.fixture
def scenario(tmp_path) -> Scenario:
    return Scenario(tmp_path)


def opened(scenario: Scenario, size: int = 4, **recipe: object) -> plans.Plan:
    config = scenario.config(**recipe)
    return plans.open_plan(open_store(config.output), Dataset.open(config.dataset), config.recipe, size)


def ids(plan: plans.Plan) -> list[str]:
    return [id for number in plan.sizes() for id in plan.shard(number).ids]


def commit(scenario: Scenario, plan: plans.Plan, number: int, fail: tuple[str, ...] = ()) -> None:
    """Store the part of a shard, as a worker would."""
    scenario.tell(fail=fail)
    config = scenario.config()
    runner = Runner(config.recipe, config.placement)
    dataset = Dataset.open(config.dataset)
    wanted = set(plan.shard(number).ids)
    rows = runner([e for e in dataset.examples() if e.id in wanted])
    assert open_store(config.output).put_if_absent(plans.part_name(number), encode(rows))


def test_every_row_has_one_place(scenario):
    scenario.pictures(19)
    plan = opened(scenario)
    assert ids(plan) == [f"p{i:04d}" for i in range(19)]
    assert list(plan.sizes().values()) == [4, 4, 4, 4, 3]
    assert plan.rows == 19


def test_opening_again_changes_nothing_and_keeps_the_first_shard_size(scenario):
    scenario.pictures(8)
    first = opened(scenario, size=4)
    again = opened(scenario, size=2)
    assert again.shard_size == 4
    assert again.sizes() == first.sizes()


def test_another_recipe_is_refused_with_both_fingerprints(scenario):
    scenario.pictures(4)
    opened(scenario, steps=5)
    mine, theirs = scenario.config(steps=6).recipe, scenario.config(steps=5).recipe
    with pytest.raises(BankMismatch, match="another --output") as refused:
        opened(scenario, steps=6)
    assert mine.fingerprint in str(refused.value)
    assert theirs.fingerprint in str(refused.value)
    assert "differing in steps" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_another_base_is_refused_and_the_same_one_is_not(tmp_path):
    store = open_store(tmp_path)
    plans.claim_base(store, "small", "aaaa")
    plans.claim_base(store, "small, elsewhere", "aaaa")
    with pytest.raises(BankMismatch, match="aaaa.*bbbb"):
        plans.claim_base(store, "large", "bbbb")


def test_foreign_parts_are_not_adopted(scenario):
    scenario.pictures(4)
    (scenario.root / "bank").mkdir()
    (scenario.root / "bank" / "part-00000000.parquet").write_bytes(b"somebody's")
    with pytest.raises(BankMismatch, match="no run to resume"):
        opened(scenario)
    assert [path.name for path in (scenario.root / "bank").rglob("*")] == ["part-00000000.parquet"]


def test_doubled_ids_are_refused_before_anything_is_written(scenario):
    scenario.pictures(4)
    file = scenario.root / "dataset" / "part-00000.parquet"
    pq.write_table(pq.read_table(file, partitioning=None), file.with_name("part-00001.parquet"))
    with pytest.raises(ConfigError, match="image_id"):
        opened(scenario)
    assert not (scenario.root / "bank").exists()


def test_a_grown_dataset_appends_only_new_rows(scenario):
    scenario.pictures(6, start=10)
    first = opened(scenario)
    scenario.pictures(6, start=0)  # sorts before what was planned
    grown = opened(scenario)
    assert [g.reason for g in grown.generations] == ["first", "grown"]
    assert [grown.shard(n) for n in first.sizes()] == [first.shard(n) for n in first.sizes()]
    assert sorted(ids(grown)) == [f"p{i:04d}" for i in (*range(6), *range(10, 16))]
    assert grown.rows == 12
    assert len(opened(scenario).generations) == 2


def test_a_dataset_that_only_lost_rows_plans_nothing_new(scenario):
    scenario.pictures(4)
    scenario.pictures(4, start=4)
    opened(scenario)
    (scenario.root / "dataset" / "part-00004.parquet").unlink()
    assert opened(scenario).rows == 8


def test_retries_are_planned_once_and_replace_failures_in_the_totals(scenario):
    scenario.pictures(8)
    plan = opened(scenario)
    config = scenario.config()
    store, dataset = open_store(config.output), Dataset.open(config.dataset)
    commit(scenario, plan, 0, fail=("p0001", "p0002"))
    commit(scenario, plan, 1, fail=("p0005",))
    tallies = plans.read_tallies(store, plan)
    assert plans.totals(store, plan, tallies) == Tally(learned=5, failed=3)

    plan = plans.add_retries(store, plan, dataset, tallies)
    assert [plan.shard(n).ids for n in (2, 3)] == [("p0001", "p0002"), ("p0005",)]
    assert plans.add_retries(store, plan, dataset, tallies) == plan  # they are planned, nothing to add
    commit(scenario, plan, 2, fail=("p0002",))
    commit(scenario, plan, 3)
    tallies = plans.read_tallies(store, plan)
    assert plans.totals(store, plan, tallies) == Tally(learned=7, failed=1)
    assert plan.rows == 8

    plan = plans.add_retries(store, plan, dataset, tallies)
    assert plan.shard(4).ids == ("p0002",)


@pytest.mark.parametrize("again", [(), ("p0001",), ("p0003",)], ids=["learned", "failed again", "another failed"])
def test_totals_count_a_picture_once_though_its_first_part_is_made_anew(scenario, again):
    """Its retry is there already; the part that it first failed in was damaged, deleted and learned again."""
    scenario.pictures(8)
    plan = opened(scenario)
    config = scenario.config()
    store, dataset = open_store(config.output), Dataset.open(config.dataset)
    commit(scenario, plan, 0, fail=("p0001",))
    commit(scenario, plan, 1)
    plan = plans.add_retries(store, plan, dataset, plans.read_tallies(store, plan))
    commit(scenario, plan, 2)
    store.delete(plans.part_name(0))
    assert plans.totals(store, plan, plans.read_tallies(store, plan)) == Tally(learned=5)
    commit(scenario, plan, 0, fail=again)
    failed = len({*again} - {"p0001"})  # p0001's latest outcome is its retry's
    assert plans.totals(store, plan, plans.read_tallies(store, plan)) == Tally(learned=8 - failed, failed=failed)


def test_tallies_follow_the_listing_not_the_cache(scenario):
    scenario.pictures(8)
    plan = opened(scenario)
    store = open_store(scenario.config().output)
    commit(scenario, plan, 1, fail=("p0005",))
    plans.write_tallies(store, {0: Tally(learned=4)})  # a part that has been deleted since
    assert plans.read_tallies(store, plan) == {1: Tally(learned=3, failed=1)}


def test_a_plan_is_the_same_for_two_drivers_at_once(scenario):
    scenario.pictures(8)
    first, second = opened(scenario), opened(scenario)
    assert dataclasses.replace(first, generations=()) == dataclasses.replace(second, generations=())
    assert first.sizes() == second.sizes()


def test_a_layout_of_the_future_is_refused(tmp_path):
    store = open_store(tmp_path)
    store.put(plans.RUN, b'{"version": 99}')
    with pytest.raises(BankMismatch, match="layout 99"):
        plans.check_recipe(store, Recipe())


def test_a_tally_counts_each_outcome():
    assert Tally.of(["learned", "failed", "learned", "skipped"]) == Tally(2, 1, 1)
    assert BankRow.__annotations__["status"]  # the names above are the bank's
