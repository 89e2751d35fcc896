"""One seeded run of faults, after which every row must be there once and be what an undisturbed run learns.

    python -m benchmarks.chaos [--faults 200] [--seed 1] [--store auto|ceph|moto]

Of 200 faults, 60 are kill -9 of a worker, Ray Train's controller, the queue actor, the driver or the head (each kind at
least 8) on a Ray cluster that learns into an object store; 20 are zombies that commit after their parts were compacted;
90 are faults of that store, most of them while processes are killed; 30 are absences of a tracking server at the start,
in the middle and at the end of a job, and requests that it loses. The learner is the tests' stub: what is tried is
everything around it. The store is Ceph where it can be had, else moto_server; nothing is reached but this machine.
The last line is one JSON object: lost, doubled and changed rows, undelivered tracking runs, faults by kind.
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
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

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
from tests.ceph import KEY, SECRET, Ceph, Unavailable, install
from tests.faulty import Faulty
from tests.orchestration import stub
from tests.orchestration.scenario import Scenario, eventually
from tests.ports import free_ports
from tests.processes import below, kill, playing

ROOT = Path(__file__).resolve().parents[1]
SHARES = {
    "kill": {"worker": 28, "controller": 8, "queue": 8, "driver": 8, "head": 8},
    "zombie": {"after compaction": 20},
    "storage": {"drop": 20, "lose": 20, "503": 20, "500": 15, "slow": 15},
    "tracking": {"away at start": 6, "away in the middle": 6, "away at end": 6, "drop": 6, "lose": 6},
}
"""group -> kind -> its share of 200 faults"""
PATIENCE = 300.0
"""seconds within which something must move, or the run is given up"""
PACE = 0.25
"""seconds a picture takes while processes are killed"""
PER_BANK = 10
"""zombies that share a bank"""


def shares(faults: int) -> dict[str, Counter[str]]:
    """How many faults of each kind make `faults` together; at least one of each."""
    found = {
        group: Counter({kind: max(1, round(share * faults / 200)) for kind, share in kinds.items()})
        for group, kinds in SHARES.items()
    }
    found["storage"]["drop"] += max(0, faults - sum(kinds.total() for kinds in found.values()))
    return found


class Chaos:
    """The run: its stores, what was injected so far, and what was found wrong."""

    def __init__(self, root: Path, endpoint: str, faults: int, seed: int):
        self.root, self.endpoint, self.random = root, endpoint, random.Random(seed)
        self.todo = shares(faults)
        self.done: dict[str, Counter[str]] = {group: Counter() for group in SHARES}
        self.wrong: Counter[str] = Counter(lost=0, doubled=0, changed=0, undelivered=0)
        self.started = time.monotonic()
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="chaos")
        kinds = list(self.todo["storage"].elements())
        self.random.shuffle(kinds)
        self.store = Faulty(endpoint, (word for kind in kinds for word in ("forward", "forward", kind)))
        os.environ["AWS_ENDPOINT_URL_S3"] = self.store.url
        storage._conditional[(self.store.url, "chaos")] = True  # so that no fault meets the probe

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.started:6.0f} s  {what}", flush=True)

    def check(self, scenario: Scenario, output: str, undisturbed: str = "undisturbed") -> None:
        """Compare a bank with the one that nothing disturbed."""
        scenario.tell()
        scenario.run(scenario.config(undisturbed))
        expected, there = (rows(scenario.uri(uri)) for uri in (undisturbed, output))
        counted = Counter(there["id"].to_pylist())
        self.wrong["lost"] += sum(id not in counted for id in expected["id"].to_pylist())
        self.wrong["doubled"] += sum(count - 1 for count in counted.values())
        if len(there) == len(expected):
            self.wrong["changed"] += sum(a != b for a, b in zip(there.to_pylist(), expected.to_pylist(), strict=True))
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
    head, failures = Head(chaos.root).start(), 0
    try:
        while True:
            code, killed = drive(chaos, scenario, output, head, todo)
            failures += code != 0 and not killed
            if failures > 5:
                raise SystemExit(f"drivers fail by themselves: {(chaos.root / 'driver.log').read_text()[-2000:]}")
            if code == 0 and not todo:
                break
            joined_in(output, 8)
            if code == 0:  # everything was learned before all were killed
                scenario.pictures(400, start=grown)
                grown += 400
    finally:
        head.end()
    chaos.say(f"{len(open_store(output).list('part-'))} files; {failures} drivers failed by themselves")
    chaos.check(scenario, output)


def drive(chaos: Chaos, scenario: Scenario, output: str, head: Head, todo: list[str]) -> tuple[int, bool]:
    """One command until it ends; its exit code, and whether that is our doing: it or the head was killed."""
    command = [sys.executable, "pipelines/train_all.py", *scenario.arguments(output), "--workers", "2"]
    with open(chaos.root / "driver.log", "ab") as log:
        driver = subprocess.Popen(
            [*command, "--tracker", "none"], cwd=ROOT, env=head.environment, stdout=log, stderr=log
        )
    seen, since = learned(scenario), time.monotonic()
    while driver.poll() is None:
        time.sleep(0.1)
        now = learned(scenario)
        if time.monotonic() - since > PATIENCE:
            kill(driver.pid)
            raise SystemExit(f"nothing moved for {PATIENCE:g} s: {(chaos.root / 'driver.log').read_text()[-2000:]}")
        if now < seen + 4:
            continue
        if not todo:
            seen, since = now, time.monotonic()
            continue
        part = todo[-1]
        victims = [driver.pid] if part == "driver" else head.playing(part)
        if not victims:
            continue
        head.kill() if part == "head" else kill(chaos.random.choice(victims))
        todo.pop()
        chaos.done["kill"][part] += 1
        chaos.say(f"killed the {part} after {now} pictures, {len(todo)} to go; store: {dict(chaos.store.done)}")
        if not todo:
            scenario.tell()  # the rest at full speed
        if part in ("driver", "head"):
            return end(chaos, driver, head, part), True
        seen, since = learned(scenario), time.monotonic()
    return driver.wait(), False


def end(chaos: Chaos, driver: subprocess.Popen, head: Head, part: str) -> int:
    """Wait until a driver has ended that was killed, or that lost its head, and the cluster can take another."""
    try:
        driver.wait(60)
    except subprocess.TimeoutExpired:
        chaos.say("the driver did not notice within a minute that its head is gone")
        kill(driver.pid)
    if part == "head":
        head.start()
    deadline = time.monotonic() + 60
    while any(head.playing(each) for each in ("worker", "controller", "queue")) and time.monotonic() < deadline:
        time.sleep(0.2)
    return driver.wait()


def learned(scenario: Scenario) -> int:
    """Pictures learned so far, committed or not, repeated ones included."""
    folder = scenario.stub_folder / "learned"
    return len(os.listdir(folder)) if folder.exists() else 0


def storage_faults(chaos: Chaos) -> None:
    """What is left of the store's faults, in this process."""
    number = 0
    while chaos.store.plan:
        scenario, output = Scenario(chaos.root / f"storage-{number}"), f"s3://chaos/storage-{number}"
        scenario.pictures(48)
        for _ in range(20):
            try:
                scenario.run(scenario.config(output))
                break
            except OSError as error:
                chaos.say(f"the run ended ({error}) and is started again")
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
    scenario.tell(seconds=0.12)
    tracking.RETRY_SECONDS, tracking.PATIENCE_SECONDS = 0.2, 0.5
    os.environ.update(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR="0")
    jobs = 0
    while todo:
        proxy.done.clear()
        summary = tracked(scenario, proxy, f"job-{jobs}", todo[-1])
        chaos.wrong["lost"] += summary.rows - summary.learned
        chaos.say(f"{todo[-1]}: {summary.learned} of {summary.rows} learned, {dict(proxy.done)}")
        jobs += 1
        if proxy.done:  # else the job said nothing while the server was away
            chaos.done["tracking"][todo.pop()] += 1
        if jobs > 2 * chaos.todo["tracking"].total() + 2:
            raise SystemExit("jobs say too little for tracking faults to meet anything")
    gc.collect()  # of runs that are over, each of which claims its spool
    tracking.MLflowTracker(proxy.url, "chaos", scenario.root)  # the next job delivers what the others had to keep
    client = tracking.connect(uri)
    experiment = client.get_experiment_by_name("chaos").experiment_id
    told = [run for run in client.search_runs([experiment]) if run.data.metrics.get("pictures/learned") == 8]
    whole = {run.info.run_name for run in told if run.info.status == "FINISHED"}
    chaos.wrong["undelivered"] += jobs - len(whole)
    chaos.say(f"{len(whole)} of {jobs} jobs are known to the tracking server in full")
    proxy.close()
    chaos.check(scenario, "job-0")


def tracked(scenario: Scenario, proxy: Faulty, name: str, fault: str) -> fanout.RunSummary:
    """One job that says where it stands, while `fault` happens to what it says."""
    proxy.away = fault == "away at start"
    run = tracking.MLflowTracker(proxy.url, "chaos", scenario.root).start({}, {}, name=name, job=name)

    def follow(progress: fanout.Progress) -> None:
        part = "end" if progress.done == progress.total else "middle" if progress.done else "start"
        proxy.away = fault == f"away at {part}" or fault == f"away in the {part}"
        if fault in ("drop", "lose"):
            proxy.plan = deque([] if proxy.done[fault] else [fault])
        run.metrics({"progress/pictures": progress.done}, step=round(1000 * progress.seconds))

    with run:
        summary = fanout.run(scenario.config(name), stub.NAME, inline=True, on_progress=follow)
        run.metrics({"pictures/learned": summary.learned})
    proxy.away = False
    return summary


def joined_in(output: str, shards: int) -> Compacted:
    """Compact with about so many shards to a file."""
    sizes = [entry.size for entry in open_store(output).list("part-0")]
    return compact(output, round(shards * sum(sizes) / len(sizes)) if sizes else 1)


@contextmanager
def object_store(kind: str, root: Path) -> Iterator[tuple[str, str]]:
    """(name, endpoint) of the store that was asked for."""
    os.environ.update(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET, AWS_DEFAULT_REGION="us-east-1")
    os.environ.pop("AWS_PROFILE", None)
    if kind != "moto":
        node = Ceph(root / "c")
        try:
            install()
            node.start()
            yield "Ceph RGW", node.url
            return
        except Unavailable as reason:
            if kind == "ceph":
                raise SystemExit(f"no Ceph: {reason}") from None
            print(f"no Ceph ({reason}); moto_server instead")
        finally:
            node.stop()
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
    from tests.tracking.conftest import Server

    (root / "server").mkdir()
    database = root / "server" / "new.db"
    logging.getLogger("mcpl.tracking").setLevel(logging.ERROR)
    tracking.connect(f"sqlite:///{database}").search_experiments()
    server = Server(root / "server", database)
    try:
        yield server.start().uri
    finally:
        server.kill()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--faults", type=int, default=200)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--store", choices=("auto", "ceph", "moto"), default="auto")
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
            "faults": sum(kinds.total() for kinds in chaos.done.values()),
            "kinds": {group: dict(kinds) for group, kinds in chaos.done.items()},
            "seed": given.seed,
            "store": name,
            "seconds": round(time.monotonic() - chaos.started),
            **machine("benchmarks.chaos"),
        }
    print(json.dumps(result))
    sys.exit(any(chaos.wrong.values()))


if __name__ == "__main__":
    main()
