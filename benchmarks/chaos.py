"""One seeded run of faults, after which every row must be there once and be what an undisturbed run learns.

    python -m benchmarks.chaos [--faults 200] [--seed 1] [--store auto|ceph|moto] [--write docs/results/chaos.json]

Of 200 faults, 60 are kill -9 of a worker, Ray Train's controller, the queue actor, the driver or the head (each kind at
least 8) on a Ray cluster that learns into an object store; 20 are zombies that commit after their parts were compacted;
90 are faults of that store (of its PUT, GET, LIST and HEAD requests), most of them while processes are killed; 30 are
absences of a tracking server at the start, in the middle and at the end of a job, and requests that it loses. Parts are
joined between the commands and beside workers that learn. The learner is the tests' stub: what is tried is everything
around it. The store is Ceph where it can be had, else moto_server; nothing is reached but this machine.
The last line is one JSON object: lost, doubled and changed rows, undelivered tracking runs, own_failures (commands that
failed though neither they nor their head were killed; running them again must do), faults by kind.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pyarrow as pa

from benchmarks.provenance import machine
from mcpl.data import storage
from mcpl.data.bank import COMPARED_COLUMNS, Bank, members
from mcpl.data.sources import Dataset
from mcpl.data.storage import open_store
from mcpl.orchestration import fanout, plan
from mcpl.orchestration.compaction import Compacted, compact
from mcpl.orchestration.fanout import Orders
from mcpl.orchestration.queue import Board, LockedBoard
from mcpl.tracking import mlflow as tracking
from tests import ceph
from tests.faulty import Faulty
from tests.orchestration import stub
from tests.orchestration.scenario import Scenario, eventually
from tests.ports import free_ports
from tests.processes import below, kill, playing

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ROOT = Path(__file__).resolve().parents[1]
SHARES = {
    "kill": {"worker": 28, "controller": 8, "queue": 8, "driver": 8, "head": 8},
    "zombie": {"after compaction": 20},
    "storage": {
        **{"PUT drop": 12, "PUT lose": 12, "PUT 503": 12, "PUT 500": 9, "PUT slow": 9},
        **{"GET drop": 4, "GET cut": 4, "GET 503": 4, "GET slow": 4},
        **{"LIST drop": 3, "LIST cut": 3, "LIST 503": 3, "LIST slow": 3},
        **{"HEAD drop": 3, "HEAD 503": 3, "HEAD slow": 2},
    },
    "tracking": {"away at start": 6, "away in the middle": 6, "away at end": 6, "drop": 6, "lose": 6},
}
"""group -> kind -> its share of 200 faults"""
PATIENCE = 300.0
"""seconds within which something must move, or the run is given up"""
PACE = 0.25
"""seconds a picture takes while processes are killed"""
PER_BANK = 10
"""zombies that share a bank"""
JOIN_EVERY = 3
"""kills after which parts are joined once more beside the workers"""
PER_FILE = 4
"""shards to a compact file, of 4 pictures each"""


def shares(faults: int) -> dict[str, Counter[str]]:
    """How many faults of each kind make `faults` together; at least one of each."""
    found = {
        group: Counter({kind: max(1, round(share * faults / 200)) for kind, share in kinds.items()})
        for group, kinds in SHARES.items()
    }
    found["storage"]["PUT drop"] += max(0, faults - sum(kinds.total() for kinds in found.values()))
    return found


class FaultyStore(Faulty):
    """An object store with one plan of faults for each operation; `done` counts them as in "LIST cut"."""

    def __init__(self, target: str, plans: dict[str, list[str]]):
        super().__init__(target)
        self.plans = {operation: deque(plan) for operation, plan in plans.items()}

    def left(self) -> int:
        """Faults still to come."""
        return sum(fault != "forward" for plan in self.plans.values() for fault in plan)

    def next(self, method: str, path: str) -> str:
        operation = operation_of(method, path)
        with self._lock:
            plan = self.plans.get(operation)
            fault = plan.popleft() if plan else "forward"
            if fault != "forward":
                self.done[f"{operation} {fault}"] += 1
            return fault


def operation_of(method: str, path: str) -> str:
    """The S3 operation that a request is: its method, but LIST where a GET asks for a listing."""
    return "LIST" if method == "GET" and "list-type=2" in path else method


def storage_plans(kinds: Counter[str], draw: random.Random) -> dict[str, list[str]]:
    """operation -> what happens to each such request: every third meets a fault, in an order that is drawn."""
    faults = [kind.split() for kind in kinds.elements()]
    draw.shuffle(faults)
    plans: dict[str, list[str]] = {}
    for operation, fault in faults:
        plans.setdefault(operation, []).extend(("forward", "forward", fault))
    return plans


class Chaos:
    """The run: its stores, what was injected so far, and what was found wrong."""

    def __init__(self, root: Path, endpoint: str, faults: int, seed: int):
        self.root, self.endpoint, self.random = root, endpoint, random.Random(seed)
        self.todo = shares(faults)
        self.done: dict[str, Counter[str]] = {group: Counter() for group in SHARES}
        self.wrong: Counter[str] = Counter(lost=0, doubled=0, changed=0, undelivered=0)
        self.own_failures: list[str] = []
        """the last lines of every command that failed though nobody killed it"""
        self.compactions_beside_work = 0
        self.joined_at = 0
        """kills before the latest of them"""
        self.started = time.monotonic()
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="chaos")
        self.store = FaultyStore(endpoint, storage_plans(self.todo["storage"], self.random))
        os.environ["AWS_ENDPOINT_URL_S3"] = self.store.url
        storage._conditional[(self.store.url, "chaos")] = True  # so that no fault meets the probe

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.started:6.0f} s  {what}", flush=True)

    def failed(self, said: str) -> None:
        """Keep and print how a command ended that nobody had killed; give the run up where this goes on."""
        lines = said.strip().splitlines()
        self.own_failures.append("\n".join(lines[-5:]))
        self.say("\n        ".join(["failed by itself:", *lines[-80:]]))
        if len(self.own_failures) > 5:
            raise SystemExit("more than 5 commands failed by themselves; each one's last lines are above")

    def check(self, scenario: Scenario, output: str, undisturbed: str = "undisturbed") -> None:
        """Compare a bank with the one that nothing disturbed."""
        scenario.tell()
        scenario.run(scenario.config(undisturbed))
        expected, there = (rows(scenario.uri(uri)) for uri in (undisturbed, output))
        counted = Counter(there["id"].to_pylist())
        self.wrong["lost"] += sum(id not in counted for id in expected["id"].to_pylist())
        self.wrong["doubled"] += sum(count - 1 for count in counted.values())
        planned = {row["id"]: row for row in expected.to_pylist()}
        self.wrong["changed"] += sum(row != planned.get(row["id"]) for row in there.to_pylist())
        self.say(f"{len(there)} of {len(expected)} rows in {output}: {dict(self.wrong)}")


def rows(uri: str) -> pa.Table:
    """Every row of every file that counts, doubles included, the compared columns alone."""
    store = open_store(uri)
    files = [Bank(store, [entry]) for entry in members(store)]
    return pa.concat_tables(file.table(list(COMPARED_COLUMNS)) for file in files).sort_by("id")


class Head:
    """A Ray head of our own, without dashboard, behind a token; its workers find this checkout."""

    def __init__(self, logs: Path):
        self._folder, self._logs = Path(tempfile.mkdtemp(prefix="r", dir="/tmp")), logs
        self._process: subprocess.Popen | None = None
        self._orphans: list[int] = []
        ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = ours | {
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
            "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}",  # taken for a job, Ray need not ship the package: it is here already
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> Head:
        kill(*self._orphans)
        for _ in range(3):  # Ray gives its processes 30 s, which a busy machine may miss
            (gcs, client), log = free_ports(2), self._logs / "head.log"
            address = f"127.0.0.1:{gcs}"
            command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--include-dashboard=false"]
            command += ["--no-monitor", "--include-log-monitor=false"]  # each would cost seconds, nothing needs them
            command += [f"--port={gcs}", f"--ray-client-server-port={client}", "--num-cpus=2"]
            command += ["--object-store-memory=100000000", "--disable-usage-stats", f"--temp-dir={self._folder}"]
            with log.open("wb") as file:
                self._process = subprocess.Popen(command, env=self.environment, stdout=file, stderr=file, cwd="/")
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and self._process.poll() is None:
                if "Ray runtime started" in log.read_text():
                    self.environment["RAY_ADDRESS"] = address
                    return self
                time.sleep(0.2)
            self.kill()
        raise SystemExit(f"no Ray head could be started: {log.read_text()}")

    def playing(self, part: str) -> list[int]:
        return playing(part, self._process.pid)

    def kill(self) -> None:
        """kill -9 of what makes it the head; what it leaves behind has until the next start to notice."""
        self._orphans = [pid for pid, _ in below(self._process.pid)]
        kill(*self.playing("head"), self._process.pid)
        self._process.wait()

    def end(self) -> None:
        self.kill()
        kill(*self._orphans)
        shutil.rmtree(self._folder, ignore_errors=True)


def kills(chaos: Chaos) -> None:
    """Learn into the store on a cluster; kill one process after another, each after new work since the last one."""
    scenario, output = Scenario(chaos.root / "kills"), "s3://chaos/kills"
    todo = list(chaos.todo["kill"].elements())
    chaos.random.shuffle(todo)
    scenario.pictures(grown := 40 * len(todo))
    scenario.tell(seconds=PACE)
    head, most = Head(chaos.root).start(), 2 * len(todo) + 10
    try:
        for _ in range(most):
            ended = drive(chaos, scenario, output, head, todo)
            if ended and not todo:
                break
            if open_store(output).list("part-"):  # a driver killed early leaves none
                joined_in(output, PER_FILE)
            if ended:  # everything was learned before all were killed
                scenario.pictures(400, start=grown)
                grown += 400
        else:
            raise SystemExit(f"{most} commands in a row did not finish {output}; kills still to come: {todo}")
    finally:
        head.end()
    files = len(open_store(output).list("part-"))
    chaos.say(f"{files} files; {chaos.compactions_beside_work} compactions joined some beside workers at work")
    chaos.check(scenario, output)


def drive(chaos: Chaos, scenario: Scenario, output: str, head: Head, todo: list[str]) -> bool:
    """One command until it ends; True where it says that everything is learned.

    One that ends otherwise has failed by itself, unless it was killed, or was running when its head was.
    """
    command = [sys.executable, "pipelines/train_all.py", *scenario.arguments(output), "--workers", "2"]
    log = chaos.root / "driver.log"  # of this command alone
    with log.open("wb") as file:
        driver = subprocess.Popen(
            [*command, "--tracker", "none"], cwd=ROOT, env=head.environment, stdout=file, stderr=file
        )
    seen, since = learned(scenario), time.monotonic()
    while driver.poll() is None:
        time.sleep(0.1)
        now = learned(scenario)
        if time.monotonic() - since > PATIENCE:
            kill(driver.pid)
            raise SystemExit(f"nothing moved for {PATIENCE:g} s: {log.read_text()[-2000:]}")
        join = bool(todo) and chaos.done["kill"].total() >= chaos.joined_at + JOIN_EVERY
        if now < seen + (6 * PER_FILE if join else 4):  # shards are leased in turn: enough to fill a file
            continue
        if not todo:
            seen, since = now, time.monotonic()
            continue
        if join:
            join_beside(chaos, output, head, driver)
        part = todo[-1]
        victims = [driver.pid] if part == "driver" else head.playing(part)
        if not victims or not head.playing("worker"):  # without workers the driver may be on its way out
            continue
        with held(driver.pid):
            if driver.poll() is not None:  # it ended before we touched anything
                break
            head.kill() if part == "head" else kill(chaos.random.choice(victims))
        todo.pop()
        chaos.done["kill"][part] += 1
        chaos.say(f"killed the {part} after {now} pictures, {len(todo)} to go; store: {dict(chaos.store.done)}")
        if not todo:
            scenario.tell()  # the rest at full speed
        if part in ("driver", "head"):
            return end(chaos, driver, head, part) == 0
        seen, since = learned(scenario), time.monotonic()
    if driver.wait() != 0:
        chaos.failed(f"exit code {driver.returncode}\n{log.read_text()}")
    return driver.returncode == 0


@contextmanager
def held(pid: int) -> Iterator[None]:
    """A process stands still meanwhile, so that it cannot end by itself between a look at it and a kill."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def join_beside(chaos: Chaos, output: str, head: Head, driver: subprocess.Popen) -> None:
    """Join parts while workers learn; counted where a file was made, and a worker was there from before until after."""
    before = head.playing("worker")
    done = joined_in(output, PER_FILE)
    if done.files and set(before) & set(head.playing("worker")) and driver.poll() is None:
        chaos.compactions_beside_work += 1
        chaos.joined_at = chaos.done["kill"].total()
    chaos.say(f"beside the workers {done.joined} parts joined into {done.files} files, {done.left} left")


def end(chaos: Chaos, driver: subprocess.Popen, head: Head, part: str) -> int:
    """Wait until a driver has ended that was killed, or that lost its head, and the cluster can take another."""
    try:
        driver.wait(60)
    except subprocess.TimeoutExpired:
        chaos.failed("a driver did not notice within a minute that it was killed or that its head is gone")
        kill(driver.pid)
    if part == "head":
        head.start()
    deadline = time.monotonic() + 60
    while any(head.playing(each) for each in ("worker", "controller", "queue")) and time.monotonic() < deadline:
        time.sleep(0.2)
    if left := [each for each in ("worker", "controller", "queue") if head.playing(each)]:
        chaos.failed(f"a minute after its driver had ended there was still: {', '.join(left)}")
    return driver.wait()


def learned(scenario: Scenario) -> int:
    """Pictures learned so far, committed or not, repeated ones included."""
    folder = scenario.stub_folder / "learned"
    return len(os.listdir(folder)) if folder.exists() else 0


def storage_faults(chaos: Chaos) -> None:
    """What is left of the store's faults, in this process."""
    number = 0
    while left := chaos.store.left():
        scenario, output = Scenario(chaos.root / f"storage-{number}"), f"s3://chaos/storage-{number}"
        scenario.pictures(48)
        for _ in range(20):  # chaos.failed gives up earlier
            try:
                scenario.run(scenario.config(output))
                break
            except OSError as error:
                chaos.failed(f"{type(error).__name__}: {error}")
        if chaos.store.left() == left:
            raise SystemExit(f"a whole run met none of the store's {left} faults to come: {chaos.store.plans}")
        chaos.check(scenario, output)
        number += 1
    chaos.done["storage"] = Counter(chaos.store.done)


def zombies(chaos: Chaos) -> None:
    """Workers lose their leases, others finish the run, its parts are joined and deleted; then the zombies commit."""
    todo, number = chaos.todo["zombie"].total(), 0
    while todo:
        count = min(PER_BANK, todo)
        scenario, output = Scenario(chaos.root / f"zombies-{number}"), f"s3://chaos/zombies-{number}"
        healthy = Scenario(chaos.root / f"healthy-{number}")
        scenario.pictures(4 * (count + count % 2))
        firsts = [f"p{4 * i:04d}" for i in range(count)]
        config = scenario.config(output)
        scenario.tell(wait=firsts)
        healthy.tell()
        now = [0.0]
        plan.open_plan(open_store(output), Dataset.open(config.dataset), config.recipe, 4)
        board = LockedBoard(Board(output, clock=lambda now=now: now[0]))
        orders = Orders(config.dataset, output, config.recipe, config.placement, stub.NAME)
        asleep = [threading.Thread(target=fanout.work, args=(board, rank, orders)) for rank in range(count)]
        for zombie in asleep:
            zombie.start()
        for id in firsts:
            eventually((scenario.stub_folder / f"waiting-{id}").exists, PATIENCE)
        now[0] = 1e6
        recipe = config.recipe.model_copy(update={"base": str(healthy.stub_folder)})
        fanout.work(board, count, Orders(config.dataset, output, recipe, config.placement, stub.NAME))
        done = joined_in(output, 2)
        covered = {entry.name for entry in open_store(output).list("part-0")}
        for id in firsts:
            (scenario.stub_folder / f"go-{id}").touch()
        for zombie in asleep:
            zombie.join(PATIENCE)
        rose = {entry.name for entry in open_store(output).list("part-0")} - covered
        if not rose:
            raise SystemExit(
                f"none of {count} zombies committed within {PATIENCE:g} s: no lease was lost, or none woke"
            )
        chaos.done["zombie"]["after compaction"] += len(rose)
        chaos.say(f"{done.joined} parts joined into {done.files} files; {len(rose)} zombies committed afterwards")
        chaos.check(scenario, output)
        again = scenario.run(config)
        chaos.wrong["lost"] += again.new  # a resumed run must find nothing to do
        todo, number = todo - len(rose), number + 1


def tracking_faults(chaos: Chaos, uri: str) -> None:
    """Jobs whose tracking server is away now and then; afterwards it must know every one of them as it ended."""
    todo = list(chaos.todo["tracking"].elements())
    chaos.random.shuffle(todo)
    proxy = Faulty(uri, matches=lambda method, path: method == "POST")
    scenario = Scenario(chaos.root / "tracked")
    scenario.pictures(8)
    scenario.tell(seconds=0.2)  # four to a shard: the middle lasts longer than the time between two looks
    tracking.RETRY_SECONDS, tracking.PATIENCE_SECONDS = 0.2, 0.5
    os.environ.update(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR="0")
    said: dict[str, Said] = {}
    while todo:
        proxy.done.clear()
        name = f"job-{len(said)}"
        summary, said[name] = tracked(scenario, proxy, name, todo[-1])
        chaos.wrong["lost"] += summary.rows - summary.learned
        chaos.say(f"{todo[-1]}: {summary.learned} of {summary.rows} learned, {dict(proxy.done)}")
        if proxy.done:  # else the job said nothing while the server was away
            chaos.done["tracking"][todo.pop()] += 1
        if len(said) > 2 * chaos.todo["tracking"].total() + 2:
            raise SystemExit("jobs say too little for tracking faults to meet anything")
    gc.collect()  # of runs that are over, each of which claims its spool
    tracking.MLflowTracker(proxy.url, "chaos", scenario.root)  # the next job delivers what the others had to keep
    client = tracking.connect(uri)
    runs = all_runs(client, client.get_experiment_by_name("chaos").experiment_id)
    names = Counter(run.info.run_name for run in runs)
    chaos.wrong["doubled"] += sum(count - 1 for count in names.values())
    whole = {run.info.run_name for run in runs if known_in_full(client, run, scenario, said[run.info.run_name])}
    chaos.wrong["undelivered"] += len(said) - len(whole)
    chaos.say(f"{len(whole)} of {len(said)} jobs are known to the tracking server in full, in {len(runs)} runs")
    proxy.close()
    for name in said:
        chaos.check(scenario, name)


def all_runs(client: MlflowClient, experiment: str) -> list[Run]:
    """Every run of an experiment, page after page."""
    page = client.search_runs([experiment])
    runs = list(page)
    while page.token:
        page = client.search_runs([experiment], page_token=page.token)
        runs += page
    return runs


def known_in_full(client: MlflowClient, run: Run, scenario: Scenario, said: Said) -> bool:
    """Whether a run ended well and has what its job said, each point once, and what is true of the job's bank."""
    tags, metrics = facts(scenario.uri(run.info.run_name))
    points = Counter(
        (name, point.step, point.value)
        for name in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, name)
    )
    ended = run.info.status == "FINISHED"
    told = run.data.tags.items() >= (said.tags | tags).items() and run.data.metrics.items() >= metrics.items()
    return ended and told and points == said.points


def facts(bank: str) -> tuple[dict[str, str], dict[str, float]]:
    """(tags, metrics) that are true of a bank: its pictures and their words; how many and how long the words are."""
    learned = [row for row in Bank.open(bank).rows() if row.learned is not None]
    words = {f"words.{row.id}": " ".join(each.concept.slug for each in row.learned.concepts) for row in learned}
    norms = {f"norms/{row.id}": sum(float(each.vectors.norm()) for each in row.learned.concepts) for row in learned}
    return words, {"pictures/learned": float(len(learned))} | norms


@dataclass
class Said:
    """What a job told its tracker, delivered or not."""

    tags: dict[str, str]
    points: Counter[tuple[str, int, float]] = field(default_factory=Counter)
    """(metric, step, value)"""

    def to(self, run: tracking.MLflowRun, values: Mapping[str, float], step: int = 0) -> None:
        """Tell some metrics, and remember them."""
        self.points.update((name, step, float(value)) for name, value in values.items())
        run.metrics(values, step=step)


def tracked(scenario: Scenario, proxy: Faulty, name: str, fault: str) -> tuple[fanout.RunSummary, Said]:
    """One job that says where it stands and what it learned, while `fault` happens to what it says."""
    proxy.away = fault == "away at start"
    said = Said({"fault": fault})
    run = tracking.MLflowTracker(proxy.url, "chaos", scenario.root).start({}, said.tags, name=name, job=name)

    def follow(progress: fanout.Progress) -> None:
        part = "end" if progress.done == progress.total else "middle" if progress.done else "start"
        proxy.away = fault == f"away at {part}" or fault == f"away in the {part}"
        if fault in ("drop", "lose"):
            proxy.plan = deque([] if proxy.done[fault] else [fault])
        said.to(run, {"progress/pictures": progress.done}, step=round(1000 * progress.seconds))

    with run:
        summary = fanout.run(scenario.config(name), stub.NAME, inline=True, on_progress=follow)
        tags, metrics = facts(scenario.uri(name))
        run.tags(tags)
        said.to(run, metrics)
    proxy.away = False
    return summary, said


def joined_in(output: str, shards: int) -> Compacted:
    """Compact with about so many shards to a file."""
    sizes = [entry.size for entry in open_store(output).list("part-0")]
    return compact(output, round(shards * sum(sizes) / len(sizes)) if sizes else 1)


@contextmanager
def object_store(kind: str, root: Path) -> Iterator[tuple[str, str]]:
    """(name, endpoint) of the store that was asked for."""
    os.environ.update(AWS_ACCESS_KEY_ID=ceph.KEY, AWS_SECRET_ACCESS_KEY=ceph.SECRET, AWS_DEFAULT_REGION="us-east-1")
    os.environ.pop("AWS_PROFILE", None)
    if kind != "moto":
        try:
            node = ceph.running(root / "c")
        except ceph.Unavailable as reason:
            if kind == "ceph":
                raise SystemExit(f"no Ceph: {reason}") from None
            print(f"no Ceph ({reason}); moto_server instead")
        else:
            try:
                yield "Ceph RGW", node.url
            finally:
                node.stop()
            return
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield "moto_server", f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def tracking_server(root: Path) -> Iterator[str]:
    """A real MLflow server on SQLite."""
    from tests.mlflow_server import running

    (root / "server").mkdir()
    database = root / "server" / "new.db"
    logging.getLogger("mcpl.tracking").setLevel(logging.ERROR)
    tracking.connect(f"sqlite:///{database}").search_experiments()
    with running(root / "server", f"sqlite:///{database}") as server:
        yield server.uri


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--faults", type=int, default=200)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--store", choices=("auto", "ceph", "moto"), default="auto")
    options.add_argument("--write", type=Path, metavar="FILE", help="save the result here as well (JSON)")
    given = options.parse_args()
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True)))
        name, endpoint = stack.enter_context(object_store(given.store, root))
        chaos = Chaos(root, endpoint, given.faults, given.seed)
        chaos.say(f"{name}; planned { ({group: dict(kinds) for group, kinds in chaos.todo.items()}) }")
        kills(chaos)
        storage_faults(chaos)
        zombies(chaos)
        tracking_faults(chaos, stack.enter_context(tracking_server(root)))
        result = {
            **chaos.wrong,
            "own_failures": len(chaos.own_failures),
            "own_failures_said": chaos.own_failures,
            "compactions_beside_work": chaos.compactions_beside_work,
            "faults": sum(kinds.total() for kinds in chaos.done.values()),
            "kinds": {group: dict(kinds) for group, kinds in chaos.done.items()},
            "seed": given.seed,
            "store": name,
            "seconds": round(time.monotonic() - chaos.started),
            **machine("benchmarks.chaos"),
        }
    if given.write:
        given.write.parent.mkdir(parents=True, exist_ok=True)
        given.write.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    sys.exit(any(chaos.wrong.values()))


if __name__ == "__main__":
    main()
