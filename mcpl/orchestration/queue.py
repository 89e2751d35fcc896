"""Who learns which shard next: leases that end with their holder, acknowledgements that storage already backs.

`ShardQueue` is pure: no clock, no network, no Ray. Everything it knows can be rebuilt from the plan and one listing
of the output; whatever it forgets may repeat work but never a row, because a part's name can be taken only once.
`Board` puts plan, storage and clock around it; one process uses it as it is, a cluster as a Ray actor (`pinned`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from mcpl.data.storage import open_store
from mcpl.orchestration.plan import Plan, Shard, Tally, read_plan, read_tallies, write_tallies

LEASE_SECONDS = 60.0
"""How long a worker may be silent. Workers beat every few seconds, also while they load or learn."""
IDS_TOLD = 3
"""pictures of a shard that a message names"""


class Verdict(Enum):
    """What a worker that got no shard should do."""

    WAIT = "wait"
    """every shard left is leased; ask again soon, for its holder may die"""
    STOP = "stop"
    """everything is learned, or the run is being stopped"""


@dataclass(frozen=True, slots=True)
class Lease:
    """One shard, lent to one worker until it is acknowledged or the worker falls silent."""

    shard: int
    worker: str
    expires: float
    """monotonic seconds"""


@dataclass(frozen=True)
class Counts:
    """Where the work stands."""

    pictures: int
    """planned, a retried picture once for each try"""
    committed: Tally
    in_hand: int
    """pictures finished inside shards that are not committed yet"""
    shards: int
    shards_done: int
    shards_leased: int

    @property
    def done(self) -> int:
        """Pictures finished, committed or not."""
        return self.committed.rows + self.in_hand

    @property
    def finished(self) -> bool:
        return self.shards_done == self.shards


class ShardQueue:
    """Leases of shards by number. Every method that needs the time is told it, in monotonic seconds."""

    def __init__(self, sizes: Mapping[int, int], done: Mapping[int, Tally], lease_seconds: float = LEASE_SECONDS):
        """`sizes`: shard -> its pictures, in the order of work; `done`: outcome of the shards already in storage."""
        self._sizes = dict(sizes)
        self._done = {shard: tally for shard, tally in done.items() if shard in self._sizes}
        self._waiting = set(self._sizes) - set(self._done)
        self._order = deque(shard for shard in self._sizes if shard in self._waiting)  # may name shards long gone
        self._leases: dict[int, Lease] = {}
        self._held: dict[str, int] = {}
        self._ranks: dict[int, str] = {}
        self._in_hand: dict[int, int] = {}
        self._lost: dict[str, int] = {}  # dead worker -> the shard that it had in hand
        self._lease_seconds = lease_seconds
        self._pictures = sum(self._sizes.values())
        self._committed = sum(self._done.values(), Tally())

    def hello(self, worker: str, rank: int) -> None:
        """A worker takes over a rank: whoever had it is dead, and its shard goes to the next who asks."""
        if self._ranks.get(rank) != worker:
            self.rank_died(rank)
        self._ranks[rank] = worker

    def rank_died(self, rank: int) -> int | None:
        """Whoever has this rank is dead; its replacement says hello later. The shard that it had in hand, if any."""
        if rank not in self._ranks:
            return None
        worker = self._ranks.pop(rank)
        self.worker_died(worker)
        return self._lost.pop(worker, None)

    def holder(self, rank: int) -> str | None:
        """The worker that has this rank."""
        return self._ranks.get(rank)

    def lease(self, worker: str, now: float) -> Lease | Verdict:
        """The next shard for `worker`. Asking again before acknowledging gives the same shard again."""
        self.expire(now)
        if worker in self._held:
            return self._lend(self._held[worker], worker, now)
        while self._order:
            shard = self._order.popleft()
            if shard in self._waiting:
                return self._lend(shard, worker, now)
        return Verdict.WAIT if self._leases else Verdict.STOP

    def heartbeat(self, worker: str, shard: int, finished: int, now: float) -> None:
        """`worker` lives and has `finished` pictures of its shard. A queue that forgot the lease learns it again."""
        if self._held.get(worker) == shard or (shard in self._waiting and worker not in self._held):
            self._lend(shard, worker, now)
            self._in_hand[shard] = min(finished, self._sizes[shard])

    def acknowledge(self, worker: str, shard: int, tally: Tally) -> bool:
        """The shard's part is in storage, whoever wrote it. False where that was known already."""
        if shard not in self._sizes:
            raise KeyError(f"shard {shard} is not in this plan")
        if self._held.get(worker) == shard:
            del self._held[worker]
        if shard in self._done:
            return False
        lease = self._leases.pop(shard, None)
        if lease is not None:
            self._held.pop(lease.worker, None)
        self._waiting.discard(shard)
        self._in_hand.pop(shard, None)
        self._done[shard] = tally
        self._committed += tally
        return True

    def worker_died(self, worker: str) -> int | None:
        """Its shard goes behind those that nobody tried yet, so that one bad shard cannot stop the others."""
        shard = self._held.pop(worker, None)
        if shard is None or self._leases[shard].worker != worker:
            return None
        del self._leases[shard]
        self._in_hand.pop(shard, None)
        self._lost[worker] = shard
        self._waiting.add(shard)
        self._order.append(shard)
        return shard

    def expire(self, now: float) -> list[int]:
        """Take back every lease whose holder has been silent for too long."""
        silent = [lease.worker for lease in self._leases.values() if lease.expires <= now]
        return [shard for worker in silent if (shard := self.worker_died(worker)) is not None]

    @property
    def done(self) -> Mapping[int, Tally]:
        return self._done

    def counts(self) -> Counts:
        return Counts(
            pictures=self._pictures,
            committed=self._committed,
            in_hand=sum(self._in_hand.values()),
            shards=len(self._sizes),
            shards_done=len(self._done),
            shards_leased=len(self._leases),
        )

    def _lend(self, shard: int, worker: str, now: float) -> Lease:
        self._waiting.discard(shard)
        self._held[worker] = shard
        self._lost.pop(worker, None)
        self._leases[shard] = Lease(shard, worker, now + self._lease_seconds)
        return self._leases[shard]


@dataclass(frozen=True)
class Failure:
    """Why a run must stop: the name of an error's class and its one-line message."""

    kind: str
    message: str


@dataclass(frozen=True)
class Snapshot:
    """What the driver looks at."""

    counts: Counts
    failure: Failure | None
    lost_workers: int
    """attempts that ended without finishing: killed, or ended by an unexpected error"""
    stopping: bool
    begun: bool
    """some worker has started"""

    @property
    def idle(self) -> bool:
        """No worker holds a shard."""
        return self.counts.shards_leased == 0


class Board:
    """The queue of one run with its plan, its storage and a clock: what workers and driver talk to.

    Made again from storage after a crash. It trusts an acknowledgement because workers give it after the commit.
    """

    TALLY_SECONDS = 30.0

    def __init__(
        self,
        output: str,
        lease_seconds: float = LEASE_SECONDS,
        error_limit: int = 3,
        death_limit: int = 10,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Give up after `error_limit` failures by an error, or `death_limit` deaths, in a row without a new shard."""
        self._store = open_store(output)
        self._plan: Plan = read_plan(self._store)
        self._queue = ShardQueue(self._plan.sizes(), read_tallies(self._store, self._plan), lease_seconds)
        self._clock = clock
        self._stopping = self._dropping = False
        self._failure: Failure | None = None
        self._limits = {"error": error_limit, "death": death_limit}
        self._strikes = {"error": 0, "death": 0}
        self._done_at_strike = len(self._queue.done)
        self._lent_to: set[str] = set()  # workers that had a shard
        self._finished = False  # some worker has finished one since this board was made
        self._excused: set[str] = set()
        self._lost_workers = 0
        self._begun = False
        self._tally_due = clock() + self.TALLY_SECONDS

    def hello(self, worker: str, rank: int) -> bool:
        """A worker starts; False: there is nothing for it to do."""
        self._queue.hello(worker, rank)
        self._begun = True
        return not (self._stopping or self._queue.counts().finished)

    def next(self, worker: str, finished: int | None = None, tally: Tally | None = None) -> Shard | Verdict:
        """Acknowledge the shard in storage, if there is one, and lease the next. Safe to repeat."""
        if finished is not None:
            self._acknowledge(worker, finished, tally)
            if self._clock() >= self._tally_due:
                self.save()
        if self._stopping:
            return Verdict.STOP
        answer = self._queue.lease(worker, self._clock())
        if isinstance(answer, Lease):
            self._lent_to.add(worker)
        return self._plan.shard(answer.shard) if isinstance(answer, Lease) else answer

    def heartbeat(self, worker: str, shard: int | None, finished: int) -> bool:
        """Note that a worker lives and how far it is. True: drop the shard in hand, the run is being stopped."""
        if shard is not None:
            self._queue.heartbeat(worker, shard, finished, self._clock())
        return self._dropping

    def leave(self, worker: str, finished: int | None = None, tally: Tally | None = None) -> None:
        """The worker goes for good: acknowledge what it finished and lease it nothing more."""
        if finished is not None:
            self._acknowledge(worker, finished, tally)
        self._queue.worker_died(worker)

    def _acknowledge(self, worker: str, finished: int, tally: Tally) -> None:
        self._queue.acknowledge(worker, finished, tally)
        self._finished = True

    def worker_died(self, worker: str) -> None:
        self._queue.worker_died(worker)

    def stop(self, drop: bool) -> None:
        """Lease nothing more; with `drop`, let go of what is in hand too."""
        self._stopping, self._dropping = True, self._dropping or drop

    def fail(self, kind: str, message: str, worker: str | None = None) -> bool:
        """Stop the run because no other worker can do better. The first reason stays.

        False, and the run goes on, where `worker` could not even begin and others have finished shards: then its
        machine is at fault (no credentials, no base, a dead GPU), and its end is no strike while others work."""
        if worker and self._finished and worker not in self._lent_to:
            self._excused.add(worker)
            return False
        self._failure = self._failure or Failure(kind, message)
        self.stop(drop=True)
        return True

    def strike(self, kind: str, message: str, ranks: Collection[int] = ()) -> bool:
        """Workers ended early at one time, by "error" or "death". True: give up, it happened too often without a new
        shard, or nobody waits for the work any more."""
        self._lost_workers += max(1, len(ranks))
        excused = bool(ranks) and all(self._queue.holder(rank) in self._excused for rank in ranks)
        lost = [shard for rank in ranks if (shard := self._queue.rank_died(rank)) is not None]
        if len(self._queue.done) > self._done_at_strike:
            self._strikes = {"error": 0, "death": 0}
            self._done_at_strike = len(self._queue.done)
        if excused and self._queue.counts().shards_leased:
            return self._dropping
        self._strikes[kind] += 1
        if self._strikes[kind] >= self._limits[kind]:
            often = f"{self._strikes[kind]} times in a row without finishing a shard"
            self.fail("NoProgress", f"workers failed {often}; the last one: {message}{self._about(lost)}")
        return self._dropping

    def _about(self, shards: Sequence[int]) -> str:
        """What workers had in hand when they ended, and what to do."""
        left = [number for number in shards if number not in self._queue.done]
        if not left:
            return ""
        shard = self._plan.shard(left[0])
        told, more = ", ".join(shard.ids[:IDS_TOLD]), len(shard.ids) - IDS_TOLD
        return (
            f"; in hand was {shard.part} ({told}{f' and {more} more' if more > 0 else ''}): --verbose shows the"
            " worker's log, and a smaller --pack needs less memory"
        )

    def snapshot(self) -> Snapshot:
        self._queue.expire(self._clock())
        return Snapshot(self._queue.counts(), self._failure, self._lost_workers, self._stopping, self._begun)

    def tallies(self) -> dict[int, Tally]:
        """Outcome of every shard that is in storage."""
        return dict(self._queue.done)

    def save(self) -> None:
        """Write the outcome cache, so that a resumed run need not read every part."""
        with contextlib.suppress(OSError):  # only a cache: a store that is away or full must not stop the learning
            write_tallies(self._store, self._queue.done)
        self._tally_due = self._clock() + self.TALLY_SECONDS


def pinned(output: str, **settings):
    """A handle of a Board as a Ray actor on the driver's node, started again by Ray whenever it dies.

    Pinned, because without a CPU of its own it could land on a spot node. An actor handle's methods are called
    through `RemoteBoard`.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(Board)
    return actor.remote(output, **settings)


class LockedBoard:
    """A Board for the threads of one process: the same methods, one at a time."""

    def __init__(self, board: Board):
        self._board, self._lock = board, threading.Lock()

    def __getattr__(self, name: str):
        method = getattr(self._board, name)

        def locked(*args, **kwargs):
            with self._lock:
                return method(*args, **kwargs)

        return locked


class RemoteBoard:
    """A Board behind a Ray actor handle: the same methods, each waiting for its answer."""

    def __init__(self, handle, timeout: float | None = None):
        self._handle, self._timeout = handle, timeout

    def __getattr__(self, name: str):
        import ray

        method = getattr(self._handle, name)
        return lambda *args, **kwargs: ray.get(method.remote(*args, **kwargs), timeout=self._timeout)
