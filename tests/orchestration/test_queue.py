"""The shard queue, without Ray: nothing lost, nothing leased twice at once, whoever dies or comes back."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mcpl.orchestration.plan import Tally
from mcpl.orchestration.queue import Lease, ShardQueue, Verdict

LEASE = 10.0
SIZES = {0: 3, 1: 3, 2: 1}


def learned(pictures: int) -> Tally:
    return Tally(learned=pictures)


def test_every_shard_is_leased_once_and_then_the_worker_may_go():
    queue = ShardQueue(SIZES, {}, LEASE)
    for expected in SIZES:
        lease = queue.lease("a", now=0)
        assert lease.shard == expected
        assert queue.acknowledge("a", lease.shard, learned(SIZES[lease.shard]))
    assert queue.lease("a", now=0) is Verdict.STOP
    assert queue.counts().finished
    assert queue.counts().committed == learned(7)


def test_what_storage_holds_is_not_leased_again():
    queue = ShardQueue(SIZES, {0: learned(3), 2: Tally(failed=1)}, LEASE)
    assert queue.lease("a", now=0).shard == 1
    assert queue.counts().committed == Tally(learned=3, failed=1)


def test_asking_again_gives_the_same_shard():
    queue = ShardQueue(SIZES, {}, LEASE)
    assert queue.lease("a", now=0).shard == queue.lease("a", now=1).shard == 0
    assert queue.lease("b", now=1).shard == 1


def test_idle_workers_wait_while_others_still_learn():
    queue = ShardQueue({0: 1}, {}, LEASE)
    queue.lease("a", now=0)
    assert queue.lease("b", now=0) is Verdict.WAIT
    queue.acknowledge("a", 0, learned(1))
    assert queue.lease("b", now=0) is Verdict.STOP


def test_a_dead_workers_shard_goes_behind_the_untried_ones():
    queue = ShardQueue(SIZES, {}, LEASE)
    queue.hello("a", rank=0)
    queue.lease("a", now=0)
    queue.hello("a2", rank=0)  # its replacement
    assert [queue.lease(worker, now=0).shard for worker in "bcd"] == [1, 2, 0]


def test_a_dead_rank_frees_its_shard_before_its_replacement_arrives():
    queue = ShardQueue({0: 1}, {}, LEASE)
    queue.hello("a", rank=0)
    queue.lease("a", now=0)
    queue.rank_died(0)
    assert queue.lease("b", now=0).shard == 0
    queue.hello("a2", rank=0)
    assert queue.lease("a2", now=0) is Verdict.WAIT


def test_a_silent_worker_loses_its_lease_and_a_beating_one_keeps_it():
    queue = ShardQueue({0: 2, 1: 2}, {}, LEASE)
    queue.lease("silent", now=0)
    queue.lease("beating", now=0)
    queue.heartbeat("beating", 1, finished=1, now=8)
    assert queue.expire(now=12) == [0]
    assert queue.counts().in_hand == 1
    assert queue.lease("next", now=12).shard == 0


def test_a_zombies_acknowledgement_counts_once():
    queue = ShardQueue({0: 2, 1: 2}, {}, LEASE)
    queue.lease("zombie", now=0)
    queue.expire(now=LEASE)
    queue.lease("b", now=LEASE)
    queue.acknowledge("b", 1, learned(2))
    assert queue.lease("b", now=LEASE).shard == 0
    assert queue.acknowledge("zombie", 0, learned(2))  # it committed after its lease was given away
    assert not queue.acknowledge("b", 0, learned(2))  # the commit was refused, the part is there: the same answer
    assert queue.counts().committed == learned(4)
    assert queue.lease("b", now=LEASE) is queue.lease("zombie", now=LEASE) is Verdict.STOP


def test_a_rebuilt_queue_learns_leases_from_heartbeats():
    queue = ShardQueue({0: 2, 1: 2}, {}, LEASE)  # rebuilt: it knows nothing of the lease on 0
    queue.heartbeat("a", 0, finished=1, now=0)
    assert queue.lease("b", now=0).shard == 1
    assert queue.lease("c", now=0) is Verdict.WAIT


def test_a_foreign_shard_is_refused():
    with pytest.raises(KeyError, match="shard 9"):
        ShardQueue(SIZES, {}).acknowledge("a", 9, learned(1))


def test_the_fast_worker_gets_more():
    """Two workers, one four times as fast: shards divide by speed, and neither waits long at the end."""
    queue = ShardQueue(dict.fromkeys(range(100), 1), {}, LEASE)
    pace, free, count = {"fast": 1.0, "slow": 4.0}, {"fast": 0.0, "slow": 0.0}, {"fast": 0, "slow": 0}
    while True:
        worker = min(free, key=free.get)
        lease = queue.lease(worker, free[worker])
        if not isinstance(lease, Lease):
            break
        free[worker] += pace[worker]
        count[worker] += 1
        queue.acknowledge(worker, lease.shard, learned(1))
    assert count == {"fast": 80, "slow": 20}
    assert abs(free["fast"] - free["slow"]) <= 4


class Fleet(RuleBasedStateMachine):
    """Workers that lease, commit, acknowledge, die, fall silent and come back; queues that are lost and rebuilt."""

    WORKERS = st.sampled_from(["a", "b", "c"])

    @initialize(count=st.integers(1, 8), done=st.sets(st.integers(0, 7)))
    def start(self, count: int, done: set[int]):
        self.sizes = {shard: 1 + shard % 3 for shard in range(count)}
        self.storage = {shard: learned(self.sizes[shard]) for shard in done if shard < count}
        self.acknowledged = set(self.storage)
        self.hands: dict[str, int] = {}
        self.now = 0.0
        self.rebuild()

    @rule()
    def rebuild(self):
        self.queue = ShardQueue(self.sizes, self.storage, LEASE)
        self.acknowledged = set(self.storage)

    @rule(worker=WORKERS)
    def lease(self, worker: str):
        answer = self.queue.lease(worker, self.now)
        if isinstance(answer, Lease):
            assert answer.shard not in self.acknowledged
            self.hands[worker] = answer.shard
        elif answer is Verdict.STOP:
            assert self.acknowledged == set(self.sizes)

    @rule(worker=WORKERS)
    def commit_and_acknowledge(self, worker: str):
        """Also by workers that were given up long ago."""
        if worker in self.hands:
            shard = self.hands.pop(worker)
            self.storage.setdefault(shard, learned(self.sizes[shard]))
            assert self.queue.acknowledge(worker, shard, self.storage[shard]) == (shard not in self.acknowledged)
            self.acknowledged.add(shard)

    @rule(worker=WORKERS)
    def die(self, worker: str):
        """Killed, perhaps between commit and acknowledgement."""
        self.hands.pop(worker, None)
        self.queue.worker_died(worker)

    @rule(worker=WORKERS, commits=st.booleans())
    def given_up_but_alive(self, worker: str, commits: bool):
        self.queue.worker_died(worker)
        if commits and worker in self.hands:
            self.storage.setdefault(self.hands[worker], learned(self.sizes[self.hands[worker]]))

    @rule(worker=WORKERS, finished=st.integers(0, 9))
    def beat(self, worker: str, finished: int):
        if worker in self.hands:
            self.queue.heartbeat(worker, self.hands[worker], finished, self.now)

    @rule(seconds=st.floats(0, 2 * LEASE))
    def time_passes(self, seconds: float):
        self.now += seconds

    @invariant()
    def counts_agree(self):
        if not hasattr(self, "queue"):
            return
        counts = self.queue.counts()
        assert counts.shards_done == len(self.acknowledged)
        assert counts.committed == sum((self.storage[shard] for shard in self.acknowledged), Tally())
        assert counts.done <= counts.pictures == sum(self.sizes.values())
        assert counts.shards_done + counts.shards_leased <= counts.shards

    def teardown(self):
        """From any state, one live worker brings the run to its end."""
        if not hasattr(self, "queue"):
            return
        for _ in range(3 * len(self.sizes) + 3):
            answer = self.queue.lease("last", self.now)
            if answer is Verdict.STOP:
                break
            if answer is Verdict.WAIT:
                self.now += LEASE
                continue
            self.queue.acknowledge("last", answer.shard, learned(self.sizes[answer.shard]))
        assert self.queue.counts().finished


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
