"""Learn every picture of a dataset, on one process or on a Ray cluster; run the same command again to resume.

Ray Train keeps the workers alive; the Board says who learns which shard; storage alone says what is done. A worker
loads the frozen base once and then repeats: lease a shard, learn its pictures, commit its part under the name that
the plan fixed, acknowledge. No torch process group and no `ray.train.report`: both are barriers, and nothing here
has to wait for anybody.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import ray
import ray.train
from ray._private.authentication.authentication_token_setup import enable_token_auth_by_default
from ray.exceptions import RayActorError
from ray.train import BackendConfig, FailureConfig, LoggingConfig, ScalingConfig
from ray.train import RunConfig as TrainRunConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

import mcpl
from mcpl.config import Placement, Recipe, RunConfig
from mcpl.data import groups
from mcpl.data.bank import encode
from mcpl.data.dataset import Dataset, ShardRef
from mcpl.data.storage import Store, open_store
from mcpl.errors import BankMismatch, ConfigError, ExampleError, MCPLError, PackTooLarge
from mcpl.orchestration import plan as plans
from mcpl.orchestration.attempts import (
    NoProgress,
    ReplicaGroups,
    Strikes,
    drain_notice,
    one_line,
    release,
    reservations,
)
from mcpl.orchestration.plan import Plan, Shard, Tally
from mcpl.orchestration.queue import Board, Counts, LockedBoard, RemoteBoard, Verdict, pinned
from mcpl.types import BankRow, Example, Group

log = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 2.0
POLL_SECONDS = 0.5
WAIT_SECONDS = 1.0
STOP_SECONDS = 1.5
"""What a stop waits for workers to let go. `ray job stop` kills three seconds after it asks."""
FINISH_SECONDS = 10.0
"""What Ray Train gets to end by itself once everything is learned; it may still wait for a lost node's replacement."""
RESIZE_SECONDS = 300.0
"""Between two looks at whether more workers fit. Every change starts the whole group again: what is in hand is lost."""
PATIENCE_SECONDS = 300.0
"""After so long without any worker it is said what a group of a fixed size waits for"""
DRAIN_SECONDS = 5.0
"""A node that is taken away sooner than this has no time to finish a shard: it is dropped, and others begin it anew."""
EXCUSED_SECONDS = 20.0
"""How long a worker that could not begin where others work waits before it is replaced"""
COMMIT_SECONDS = 900.0
"""How long a finished shard waits in memory for a store that is away"""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Set for driver and workers: nobody phones home, and a worker without a GPU keeps CUDA_VISIBLE_DEVICES as it was."""
DRIVER = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1", "RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}
"""Ray Train looks at its workers every second, and leaves their working directory alone."""
OTHERS_FAULT = (MCPLError, OSError, MemoryError)
"""what no picture is to blame for: settings, storage, the machine"""
START_ATTEMPTS = 3
RUNNER = "mcpl.orchestration.job:Runner"
OBJECT_STORE_BYTES = 200 << 20
"""Of a cluster made for one run: only leases and tallies travel, never pictures."""


class Runner(Protocol):
    """Learns pictures and groups of them on one frozen base, loaded once: a row each, in order.

    A bad picture becomes a failed row, never an exception."""

    base_digest: str

    def __call__(
        self, examples: Sequence[Example | Group], on_done: Callable[[BankRow], None] | None = None
    ) -> list[BankRow]: ...

    def failed(self, asked: Example | Group, reason: str) -> BankRow:
        """The row of a picture that could not be learned."""


@dataclass(frozen=True)
class Progress:
    """One look at a running job, for a progress bar or a tracker."""

    done: int
    """pictures finished, resumed ones included"""
    total: int
    failed: int
    skipped: int
    seconds: float
    """since the start of this command"""
    pictures_per_minute: float
    """over the last minutes of this command's own work; 0 before the first picture"""
    seconds_left: float | None
    workers: int
    """workers that hold a shard"""
    lost_workers: int


@dataclass(frozen=True)
class RunSummary:
    """How a run ended."""

    bank_uri: str
    rows: int
    """pictures planned"""
    learned: int
    failed: int
    skipped: int
    resumed: int
    """pictures that earlier commands had finished"""
    new: int
    """pictures that this command finished"""
    seconds: float
    pictures_per_minute: float
    """this command's own work over its whole time, start-up included"""
    lost_workers: int = 0
    stopped: bool = False
    """a signal ended the run early; the same command goes on from here"""
    notes: tuple[str, ...] = ()
    """what the user should know, a line each"""

    @property
    def failed_share(self) -> float:
        return self.failed / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class Kind:
    """A kind of work that is fanned out: where its rows come from, and how its results are stored.

    Functions of a module, so that they can be sent to workers by name. Results have the columns `id` and `status`.
    """

    opened: Callable[[str], Dataset] = Dataset.open
    encode: Callable[[Sequence], bytes] = encode


LEARNING = Kind()


def run(
    config: RunConfig,
    runner: str = RUNNER,
    *,
    kind: Kind = LEARNING,
    on_progress: Callable[[Progress], None] | None = None,
    inline: bool = False,
    wait_for_nodes: bool = False,
    verbose: bool = False,
) -> RunSummary:
    """Learn what `config.output` lacks of `config.dataset`. `runner` is an import path, "module:class"; `kind` says
    what its rows are where they are not pictures to learn.

    Uses the Ray cluster that the process is connected to, else the one of RAY_ADDRESS, else starts one on this
    machine; `inline` starts no Ray and learns in this process. `wait_for_nodes` says that the cluster grows on demand;
    otherwise workers that do not fit its nodes are refused. `verbose` shows the workers' logs.

    Raises the MCPL errors, also those met by workers, and NoProgress where workers fail again and again. SIGTERM or
    Ctrl-C stop it cleanly (`RunSummary.stopped`).
    """
    started = time.monotonic()
    config = _absolute(config)
    dataset = kind.opened(config.dataset)
    store = open_store(config.output)
    check_identity(store, config, runner)
    plan = plans.open_plan(store, dataset, config.recipe, config.placement.shard_size)
    notes = _notes(plan, config, dataset)
    tallies = plans.read_tallies(store, plan)
    if config.placement.retry_failed:
        plan = plans.add_retries(store, plan, dataset, tallies)
    sizes = plan.sizes()
    resumed = sum(tally.rows for tally in tallies.values())

    def summary(tallies: Mapping[int, Tally], **how: object) -> RunSummary:
        seconds = time.monotonic() - started
        new = sum(tally.rows for tally in tallies.values()) - resumed
        outcome = plans.totals(store, plan, tallies)
        return RunSummary(
            bank_uri=store.uri,
            rows=plan.rows,
            learned=outcome.learned,
            failed=outcome.failed,
            skipped=outcome.skipped,
            resumed=resumed,
            new=new,
            seconds=seconds,
            pictures_per_minute=60 * new / seconds,
            notes=notes,
            **how,
        )

    if len(tallies) == len(sizes):
        return summary(tallies)
    orders = Orders(config.dataset, config.output, config.recipe, config.placement, runner, kind)
    workers = 1 if inline else _useful_workers(config.placement, len(sizes) - len(tallies))
    meter = Meter(started, sum(sizes.values()), on_progress)
    with _in_process(orders) if inline else _on_ray(orders, workers, wait_for_nodes, verbose) as (board, task):
        if not inline and (idle := _idle_gpus(config.placement)):
            print(f"note: {idle}", file=sys.stderr, flush=True)  # at once, for the end may be days away
            notes += (idle,)
        stopped = _drive(board, task, meter, "" if inline else _waiting(workers))
        snapshot = board.snapshot()
        board.save()
        if snapshot.failure is not None:
            raise FAILURES[snapshot.failure.kind](snapshot.failure.message)
        ended = summary(board.tallies(), lost_workers=snapshot.lost_workers, stopped=stopped)
    if not stopped and (missing := sizes.keys() - plans.parts_present(store)):
        raise RuntimeError(
            f"{store.uri} lacks {len(missing)} acknowledged parts, first {plans.part_name(min(missing))}"
        )
    return ended


def _waiting(workers: int | tuple[int, int]) -> str:
    """What a run waits for whose workers do not begin."""
    fewest = min(workers) if isinstance(workers, tuple) else workers
    advice = f"; --workers 1:{workers} begins with what there is" if isinstance(workers, int) and workers > 1 else ""
    return f"note: no worker has begun yet: the cluster has no room for {fewest} at one time{advice}"


def _useful_workers(placement: Placement, shards: int) -> int | tuple[int, int]:
    """How many workers have something to do; (fewest, most) where the number may change while they learn."""
    most = min(placement.workers, shards)
    return most if placement.min_workers is None else (min(placement.min_workers, most), most)


def check_identity(store: Store, config: RunConfig, runner: str = RUNNER) -> None:
    """Raises BankMismatch where the output belongs to another recipe's run, or to one on another base.

    The base is loaded only where it has another name than the run began with; else the first worker looks.
    """
    plans.check_recipe(store, config.recipe)
    began = plans.base_of(store)
    if began is not None and began != (config.recipe.base, config.recipe.revision):
        digest = import_runner(runner)(config.recipe, config.placement).base_digest
        plans.claim_base(store, config.recipe.base, digest)


@dataclass(frozen=True)
class Orders:
    """What a worker is told: all that it needs, and no more than can be sent to it."""

    dataset: str
    output: str
    recipe: Recipe
    placement: Placement
    runner: str
    kind: Kind = LEARNING


def work(board: Board, rank: int, orders: Orders, notice: Callable[[], float | None] = lambda: None) -> None:
    """A worker's whole life: lease, learn, commit, acknowledge, until nothing is left.

    `notice` tells in how many seconds its machine is taken away, or None; told so, it finishes its shard and leaves.
    MCPL errors stop the run for everybody, unless others do better (`Board.fail`); anything else propagates.
    """
    me = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    if not board.hello(me, rank):
        return
    try:
        with _Pulse(board, me, notice) as pulse:
            _work(board, me, orders, pulse)
    except _Dropped:
        board.worker_died(me)
    except MCPLError as error:
        # a group whose size may change starts again as a whole with each worker that ends: there nobody is excused
        alone = orders.placement.min_workers is None and not isinstance(error, PackTooLarge)
        if not board.fail(type(error).__name__, str(error), me if alone else None):
            board.worker_died(me)
            time.sleep(EXCUSED_SECONDS)  # its replacement may begin on the same machine
            raise
    except BaseException:
        board.worker_died(me)
        raise


def _work(board: Board, me: str, orders: Orders, pulse: _Pulse) -> None:
    data = _Jobs(orders.kind.opened(orders.dataset))
    store = open_store(orders.output, retry_seconds=COMMIT_SECONDS)
    check_shared(store, plans.RUN)
    threads = {"threads": orders.placement.worker_threads}
    runner = import_runner(orders.runner)(orders.recipe, orders.placement.model_copy(update=threads))
    plans.claim_base(store, orders.recipe.base, runner.base_digest)
    finished: tuple[int, Tally] | tuple[()] = ()
    while not pulse.leaving:
        shard = board.next(me, *finished)
        finished = ()
        pulse.begin(None)
        if shard is Verdict.STOP:
            return
        if shard is Verdict.WAIT:
            time.sleep(WAIT_SECONDS)
            continue
        pulse.begin(shard.number)
        finished = shard.number, _existing(store, shard) or _learn(store, shard, data, runner, pulse, orders.kind)
    board.leave(me, *finished)


def _learn(store: Store, shard: Shard, data: _Jobs, runner: Runner, pulse: _Pulse, kind: Kind) -> Tally:
    """Learn a shard's jobs and commit its part; the tally is of the part that is in storage afterwards."""
    rows = _rows(shard, data, runner, pulse)
    if [row.id for row in rows] != list(shard.ids):
        raise RuntimeError(f"{type(runner).__name__} returned other rows than it was given for {shard.part}")
    if store.put_if_absent(shard.part, kind.encode(rows)):
        return Tally.of(row.status for row in rows)
    return plans.tally_part(store, shard.number)


def _rows(shard: Shard, data: _Jobs, runner: Runner, pulse: _Pulse) -> list:
    """A shard's rows. Where learning it raises what nobody foresaw, it is learned picture by picture, so that a picture
    that cannot be learned costs its own row and not the run."""
    jobs = data.read(shard)
    try:
        rows = runner(jobs, pulse.on_done)
        pulse.sound = jobs[-1]
        return rows
    except Exception as error:
        if _others_fault(error):
            raise
        log.warning("%s is learned picture by picture after %s", shard.part, one_line(error))
    pulse.begin(shard.number)  # outside the except: the error holds the failed step's memory
    return _one_by_one(shard, jobs, data, runner, pulse)


def _one_by_one(shard: Shard, jobs: Sequence[Example | Group], data: _Jobs, runner: Runner, pulse: _Pulse) -> list:
    """A row each; a failed one, with the error, for what cannot be learned alone.

    Where the last ones failed, one that the worker could learn before, else one that lies beside them, must still be
    learned. Raises where it is not, or where there is none: then the machine is at fault, and no picture.
    """
    rows, failed = [], False
    for job in jobs:
        try:
            rows += runner([job], pulse.on_done)
            pulse.sound, failed = job, False
        except Exception as error:
            if _others_fault(error):
                raise
            rows.append(runner.failed(job, one_line(error)))
            pulse.on_done(rows[-1])
            failed = True
    if failed:
        runner([pulse.sound or data.beside(shard) or jobs[-1]])
    return rows


def _others_fault(error: Exception) -> bool:
    """Whether no picture is to blame: settings, storage, or memory, for which torch has many names."""
    no_memory = type(error).__name__ == "OutOfMemoryError" or "alloc" in str(error).lower()
    return no_memory or isinstance(error, OTHERS_FAULT)


class _Jobs:
    """The dataset as a worker reads it: planned pictures and groups, in the planned order."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        self._sizes = groups.sizes(self._dataset) if "group" in self._dataset.columns else {}

    def read(self, shard: Shard) -> list[Example | Group]:
        """ConfigError where the dataset lost one."""
        try:
            found = self._read(shard.refs, shard.ids)
        except (FileNotFoundError, IndexError):
            found = {}
        if not found.keys() >= set(shard.ids):  # rows moved since they were planned: a file was added before them
            if lost := [id for id in shard.ids if id not in self._places]:
                raise ConfigError(
                    f"{self._dataset.uri} lost {len(lost)} rows that were planned but not yet learned"
                    f" ({lost[0]!r} ...); put them back, or use another --output"
                )
            found = {id: self._read(self._places[id], [id])[id] for id in shard.ids}
        return [found[id] for id in shard.ids]

    def beside(self, shard: Shard) -> Example | Group | None:
        """Another job that lies where a shard's do: one that is not tried again with them."""
        return next((job for job in groups.read(self._dataset, shard.refs) if job.id not in shard.ids), None)

    @cached_property
    def _places(self) -> dict[str, tuple[ShardRef, ...]]:
        """Where each job lies now."""
        return groups.places(self._dataset)

    def _read(self, refs: Sequence[ShardRef], ids: Sequence[str]) -> dict[str, Example | Group]:
        """Those of the wanted jobs that lie there as a whole."""
        wanted = set(ids)
        return {
            job.id: job
            for job in groups.read(self._dataset, refs)
            if job.id in wanted and (not isinstance(job, Group) or len(job.pictures) == self._sizes[job.id])
        }


def _existing(store: Store, shard: Shard) -> Tally | None:
    """The tally of a part that is there already: a zombie's, or another driver's on the same output."""
    try:
        return plans.tally_part(store, shard.number)
    except FileNotFoundError:
        return None


class _Dropped(BaseException):
    """The run is being stopped: let go of the shard in hand. No Exception, so that no runner records it."""


class _Pulse:
    """Tells the board every few seconds that this worker lives, also while a model loads or a batch is learned."""

    leaving = False
    """the machine is being taken away: no other shard"""
    sound: Example | Group | None = None
    """what this worker learned last: its machine can"""

    def __init__(self, board: Board, worker: str, notice: Callable[[], float | None]):
        self._board, self._worker, self._notice = board, worker, notice
        self._shard: int | None = None
        self._finished = 0
        self._dropped = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> _Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()

    def begin(self, shard: int | None) -> None:
        self._shard, self._finished = shard, 0
        self._stay()

    def on_done(self, row: BankRow) -> None:
        self._finished += 1
        self._stay()

    def _stay(self) -> None:
        if self._dropped:
            raise _Dropped

    def _beat(self) -> None:
        while not self._end.wait(HEARTBEAT_SECONDS):
            try:
                left = self._notice()
                self.leaving = self.leaving or left is not None
                if left is not None and left < DRAIN_SECONDS:  # a whole pack may pass before the learner looks up
                    self._dropped = True
                    self._board.leave(self._worker)
                    return
                self._dropped = self._board.heartbeat(self._worker, self._shard, self._finished)
            except Exception:  # the board is gone for good, and with it the run; the next lease will say so
                self._dropped = True
                return


class Meter:
    """Turns counts into speed and time left, and passes them on."""

    WINDOW = 300.0
    """seconds of work that the speed is taken over"""

    def __init__(self, started: float, total: int, on_progress: Callable[[Progress], None] | None):
        self._started, self._total, self._on_progress = started, total, on_progress
        self._samples: deque[tuple[float, int]] = deque()

    def look(self, counts: Counts, lost_workers: int, now: float) -> None:
        """Start-up is not counted: the first sample is taken when a worker first holds a shard."""
        if counts.shards_leased or self._samples:
            self._samples.append((now, counts.done))
        while len(self._samples) > 2 and self._samples[1][0] < now - self.WINDOW:
            self._samples.popleft()
        per_second = 0.0
        if len(self._samples) > 1 and now > self._samples[0][0]:
            per_second = max(0, counts.done - self._samples[0][1]) / (now - self._samples[0][0])
        if self._on_progress is not None:
            self._on_progress(
                Progress(
                    done=counts.done,
                    total=self._total,
                    failed=counts.committed.failed,
                    skipped=counts.committed.skipped,
                    seconds=now - self._started,
                    pictures_per_minute=60 * per_second,
                    seconds_left=(self._total - counts.done) / per_second if per_second else None,
                    workers=counts.shards_leased,
                    lost_workers=lost_workers,
                )
            )


class _Task(threading.Thread):
    """Something that runs beside the driver's loop and whose error is raised there."""

    def __init__(self, target: Callable[[], None]):
        super().__init__(daemon=True)
        self._call = target
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self.error = error


def _drive(board: Board, task: _Task, meter: Meter, waiting: str = "") -> bool:
    """Watch the work until it ends or a signal stops it; True if it was stopped. waiting: said of workers that do not
    begin for long."""
    with _signals() as signals:
        told, deadline, patience = None, float("inf"), time.monotonic() + PATIENCE_SECONDS
        task.start()
        while task.is_alive() and time.monotonic() < deadline:
            task.join(POLL_SECONDS)
            if signals.wish != told:
                told = signals.wish
                board.stop(drop=told == "drop")
                if told == "drop":
                    deadline = time.monotonic() + STOP_SECONDS
            snapshot = board.snapshot()
            if snapshot.begun:  # once is enough: a board that was made again has seen nobody begin
                waiting = ""
            elif waiting and time.monotonic() > patience:
                print(waiting, file=sys.stderr, flush=True)
                waiting = ""
            meter.look(snapshot.counts, snapshot.lost_workers, time.monotonic())
            if told == "drop" and snapshot.idle:
                break
            if snapshot.counts.finished:
                deadline = min(deadline, time.monotonic() + FINISH_SECONDS)
    if told is None and task.error is not None and board.snapshot().failure is None:
        raise task.error
    return told is not None and not board.snapshot().counts.finished


class _Wish:
    """What the signals so far ask for: nothing, to finish the shards in hand, or to drop them."""

    wish: str | None = None


@contextlib.contextmanager
def _signals() -> Iterator[_Wish]:
    """Ctrl-C once finishes the shards in hand, twice drops them; SIGTERM drops them, since a kill follows soon."""
    asked = _Wish()

    def handle(number: int, _frame: object) -> None:
        asked.wish = "drop" if number == signal.SIGTERM or asked.wish else "finish"
        how = "after the shards in hand, Ctrl-C again drops them" if asked.wish == "finish" else "at once"
        print(f"stopping {how}; run the same command again to go on", file=sys.stderr, flush=True)

    with heard(handle):
        yield asked


@contextlib.contextmanager
def heard(handle: Callable[[int, object], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C call `handle` meanwhile; only a process's main thread can hear them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _in_process(orders: Orders) -> Iterator[tuple[Board, _Task]]:
    board = LockedBoard(Board(orders.output))
    yield board, _Task(lambda: work(board, 0, orders))


@contextlib.contextmanager
def _on_ray(
    orders: Orders, workers: int | tuple[int, int], wait_for_nodes: bool, verbose: bool
) -> Iterator[tuple[Board, _Task]]:
    with cluster(verbose):
        if not wait_for_nodes:
            check_room(min(workers) if isinstance(workers, tuple) else workers, orders.placement)
        handle = pinned(orders.output)
        board, others = RemoteBoard(handle), reservations()
        try:
            with tempfile.TemporaryDirectory(prefix="mcpl-train-", ignore_cleanup_errors=True) as scratch:
                yield board, _Task(lambda: _fit_to_the_end(board, handle, orders, workers, scratch, verbose))
        finally:
            if abandoned := reservations() - others:  # on a cluster that stays, Ray Train would keep them
                board.stop(drop=True)  # so that it starts no other workers for those that this ends
                release(abandoned)


def _fit_to_the_end(board: Board, handle, orders: Orders, workers, scratch: str, verbose: bool) -> None:
    """Ray Train replaces dead workers; this replaces a dead Ray Train. Board and storage lose nothing by it."""
    others = reservations()
    while True:
        kind, message = "error", "all workers left before the work was done"
        try:
            _trainer(handle, orders, workers, scratch, verbose).fit()
        except (RayActorError, ray.train.ControllerError) as error:  # it died, or a worker while it made its group
            cause = getattr(error, "controller_failure", error)
            kind, message = "death", f"Ray Train's controller: {one_line(cause)}"
            release(reservations() - others)
        snapshot = board.snapshot()
        if snapshot.counts.finished or snapshot.stopping or board.strike(kind, message):
            return


def _trainer(handle, orders: Orders, workers, scratch: str, verbose: bool) -> DataParallelTrainer:
    placement = orders.placement
    # A group of a fixed size replaces one worker; one whose size may change can only be started again as a whole.
    whole_group = os.environ.get("MCPL_WHOLE_GROUP_RESTART") == "1" or isinstance(workers, tuple)

    def loop() -> None:  # a closure, so that the controller need not import what only workers use
        _train_loop(handle, orders)

    return DataParallelTrainer(
        loop,
        backend_config=BackendConfig() if whole_group else ReplicaGroups(),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=placement.gpus_per_worker > 0,
            resources_per_worker=_resources(placement),
            elastic_resize_monitor_interval_s=float(os.environ.get("MCPL_RESIZE_SECONDS", RESIZE_SECONDS)),
        ),
        run_config=TrainRunConfig(
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=-1),
            callbacks=[Strikes(handle)],
            logging_config=LoggingConfig(log_level="INFO" if verbose else "ERROR"),
        ),
    )


def _train_loop(handle, orders: Orders) -> None:
    """What Ray Train starts on each worker."""
    threads = str(orders.placement.worker_threads)
    os.environ.update(QUIET | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads})
    if "torch" in sys.modules:  # too late for the variables
        sys.modules["torch"].set_num_threads(int(threads))
    orders = replace(orders, placement=decided(orders.placement))
    work(RemoteBoard(handle), ray.train.get_context().get_world_rank(), orders, drain_notice)


def decided(placement: Placement) -> Placement:
    """The placement with `auto` settled: without a share of a GPU a worker must not take the first one that it sees,
    and with one it must not learn on the CPU where torch or the driver cannot use it."""
    if placement.device != "auto":
        return placement
    return placement.model_copy(update={"device": "cuda" if placement.gpus_per_worker else "cpu"})


def check_shared(store: Store, file: str) -> None:
    """Raise ConfigError where a worker does not see what the driver wrote: it would learn for nobody."""
    try:
        store.get(file)
    except FileNotFoundError:
        raise ConfigError(
            f"{store.uri} holds no {file} as {socket.gethostname()} sees it: an output must be a folder that all"
            " machines share, or s3://bucket/prefix"
        ) from None


def _resources(placement: Placement) -> dict[str, float]:
    return {"CPU": placement.cpus_per_worker} | (
        {"GPU": placement.gpus_per_worker} if placement.gpus_per_worker else {}
    )


@contextlib.contextmanager
def cluster(verbose: bool = False) -> Iterator[None]:
    """The Ray cluster to work on: the connected one, that of RAY_ADDRESS, else one made for this run."""
    for name, value in (QUIET | DRIVER).items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield
        return
    level = "INFO" if verbose else "ERROR"
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=level, log_to_driver=verbose, runtime_env=_package_for_others())
    else:
        _start_local(level, verbose)
    try:
        yield
    finally:
        ray.shutdown()


def _start_local(level: str, verbose: bool) -> None:
    """A cluster of this machine alone, without dashboard, whose ports answer only to a token of its own.

    Its workers keep the niceness of the command: Ray's own, 15 more, starves them wherever something else works. And
    few of glibc's arenas: a worker that learns one trial after the other, each in a thread of its own, filled them all.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")  # the container image has it for a cluster's machines
    if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if not os.environ.get("RAY_AUTH_MODE"):
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        enable_token_auth_by_default()  # the variable alone is too late once Ray is imported
    root = str(Path(mcpl.__file__).resolve().parents[1])
    if root not in os.environ.get("PYTHONPATH", "").split(os.pathsep):  # workers find the package where we found it
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=verbose,
                logging_level=level,
                object_store_memory=OBJECT_STORE_BYTES,
            )
            return
        except Exception as error:  # Ray's own class for this: it gives its processes 30 s, too little when all is busy
            if "timed out during startup" not in str(error) or attempt == START_ATTEMPTS:
                raise
            ray.shutdown()


def _package_for_others() -> dict:
    """Ships the package to a cluster that this process joins from outside; a job's working directory holds it."""
    inside_a_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    home = Path(mcpl.__file__).resolve().parent
    installed = "site-packages" in home.parts
    return {} if inside_a_job or installed else {"py_modules": [str(home)]}


def check_room(workers: int, placement: Placement, word: str = "worker") -> None:
    """Say at once what the cluster's nodes can never hold; what is only busy is waited for. word: what is placed."""
    need = {name: amount for name, amount in _resources(placement).items() if amount}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(
        min((int(node.get(name, 0) / amount + 1e-9) for name, amount in need.items()), default=workers)
        for node in nodes
    )
    if room >= workers:
        return
    asked = " and ".join(f"{amount:g} {name}" for name, amount in need.items())
    have = ", ".join(f"{amount:g} {name}" for name, amount in ray.cluster_resources().items() if name in ("CPU", "GPU"))
    who, ways = f"{workers} {word}s at {asked} each do", ["use fewer", "give each less"]
    if workers == 1:
        who, ways = f"1 {word} at {asked} does", ["give it less"]
    ways.append("--wait-for-nodes where the cluster grows")
    told = ", or ".join(filter(None, [", ".join(ways[:-1]), ways[-1]]))
    raise ConfigError(f"{who} not fit this cluster ({have or 'no CPU'}; room for {room}): {told}")


def _notes(plan: Plan, config: RunConfig, dataset: Dataset) -> tuple[str, ...]:
    notes = []
    if "group" in dataset.columns and (shared := groups.sizes(dataset)):
        notes.append(
            f"{shared.total()} of {dataset.count} pictures make {len(shared)} groups that share their words: a group is"
            " learned as one job and counted once"
        )
    if plan.shard_size != config.placement.shard_size:
        notes.append(f"the first run fixed shards of {plan.shard_size} pictures; --shard-size is not used")
    if len(plan.generations) > 1:
        reasons = [f"{sum(g.sizes().values())} {g.reason}" for g in plan.generations]
        notes.append(f"planned in {len(reasons)} steps: {', '.join(reasons)}")
    return tuple(notes)


def _idle_gpus(placement: Placement) -> str:
    """What to say of a cluster's GPUs that nobody asked for; empty where there are none."""
    gpus = ray.cluster_resources().get("GPU", 0)
    if not gpus or placement.gpus_per_worker or placement.device != "auto":
        return ""
    return f"workers use the CPU, though the cluster has {gpus:g} GPU: --gpus-per-worker 1 gives each one"


def _absolute(config: RunConfig) -> RunConfig:
    """Paths as every worker can use them, wherever it stands."""
    there = {name: open_store(getattr(config, name)).uri for name in ("dataset", "output")}
    return config.model_copy(update=there)


def import_runner(path: str) -> type[Runner]:
    """The class that `module:class` names."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"runner {path!r} cannot be imported: {error}") from error


FAILURES = {kind.__name__: kind for kind in (ConfigError, ExampleError, PackTooLarge, BankMismatch, NoProgress)}
"""Errors that a worker or the board may end a run with, by name"""
