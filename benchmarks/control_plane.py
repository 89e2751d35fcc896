"""How much the fan-out itself can carry: a whole run with a learner that does nothing.

    python -m benchmarks.control_plane --rows 1000000 [--workers 2] [--shard-size 64] [--tracker none]
        [--folder DIRECTORY] [--write docs/results/control-plane.json]

Everything is real but the learning: a dataset in Parquet, Ray Train's workers, the queue actor, leases and beats, and
every part encoded and committed to disk with fsync and a hard link. A row is as large as one of Stable Diffusion 1.x:
two words of 768 float32, two 16x16 maps each, a curve, 200 losses of two terms. The end of the run is told to MLflow
(SQLite), with curves over all rows, tables, a page and the bank's digest, and timed apart. Then the output is listed,
the same run is started again as a user would, the parts are joined into large files, and it is started once more.
Memory is resident memory (shared pages counted in each process) of what is ours: driver, queue, workers; Ray's own
processes stand beside it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from mcpl.config import Placement, Recipe, RunConfig
from mcpl.data.schema import DATASET, ROW_GROUP
from mcpl.data.storage import open_store
from mcpl.orchestration import plan, record
from mcpl.orchestration.compaction import compact
from mcpl.orchestration.fanout import Progress
from mcpl.orchestration.plan import Tally
from mcpl.orchestration.queue import Lease, ShardQueue
from mcpl.types import BankRow, Concept, CurvePoint, Example, LearnedConcept, LearnedConcepts, Provenance

ROOT = Path(__file__).resolve().parents[1]
RUNNER = f"{__name__ if __name__ != '__main__' else 'benchmarks.control_plane'}:Idle"
SENTENCE = "a brown <bear> on a rolling <board>"
FILE_ROWS = 64 * ROW_GROUP
PICTURE_BYTES = 4096
"""of a picture; 20 kB is more usual, and 20 GB for a million: only reading the dataset depends on it"""
STEPS, LOOK_EVERY = 200, 25
DIFFERENT = 1024
"""pictures after which the numbers repeat: more than a part holds, or its compression would be flattered"""
SAMPLE_SECONDS = 1.0
OURS = {"ray::Board": "queue", "ray::RayTrainWorker": "workers"}


class Idle:
    """Answers at once with words that look learned: random numbers drawn before, no two alike within a part."""

    base_digest = "1d1e" * 4

    def __init__(self, recipe: Recipe, placement: Placement):
        draw = torch.Generator().manual_seed(0)
        self._fingerprint = recipe.fingerprint
        self._vectors = 0.4 * torch.randn(2 * DIFFERENT, 1, 768, generator=draw)
        self._maps = torch.rand(2 * DIFFERENT, 2, 16, 16, generator=draw)
        self._curve = tuple(CurvePoint(s, 1 / (1 + s), 0.3, 0.4, 0.1) for s in range(0, STEPS + 1, LOOK_EVERY))
        losses = torch.rand(DIFFERENT, 2, STEPS, generator=draw).tolist()
        self._losses = [{"contrastive": tuple(one), "denoising": tuple(other)} for one, other in losses]
        self._metrics = {f"metric_{number}": number / 7 for number in range(12)}
        self._served = 0

    def __call__(self, examples: Sequence[Example], on_done: Callable[[BankRow], None] | None = None) -> list[BankRow]:
        rows = [self._row(example) for example in examples]
        for row in rows:
            if on_done:
                on_done(row)
        return rows

    def _row(self, example: Example) -> BankRow:
        self._served += 1
        return BankRow(
            id=example.id,
            text=example.text,
            status="learned",
            provenance=Provenance(
                "idle",
                self._fingerprint,
                "idle",
                self.base_digest,
                0,
                "none",
                hashlib.sha256(example.image).hexdigest(),
                "0" * 64,
            ),
            learned=LearnedConcepts(
                job_id=example.id,
                concepts=(self._word("bear", 0), self._word("board", 1)),
                curve=self._curve,
                losses=self._losses[self._served % DIFFERENT],
                steps=STEPS,
                sample_passes=4 * STEPS + 10 * len(self._curve),
            ),
            metrics=self._metrics,
            seconds=1.0,
            host="idle",
            learned_at="2026-01-01T00:00:00+00:00",
        )

    def _word(self, slug: str, number: int) -> LearnedConcept:
        at = (2 * self._served + number) % (2 * DIFFERENT)
        return LearnedConcept(Concept(slug), self._vectors[at], self._maps[at, 0], self._maps[at, 1])


def write_dataset(folder: Path, rows: int, picture_bytes: int = PICTURE_BYTES) -> None:
    """So many rows; each picture is a small JPEG, so that a page can show it, with bytes of its own after its end."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    jpeg = np.frombuffer(_jpeg(draw), np.uint8)
    for start in range(0, rows, FILE_ROWS):
        count = min(FILE_ROWS, rows - start)
        content = draw.integers(0, 256, (count, max(picture_bytes, len(jpeg) + 16)), np.uint8)
        content[:, : len(jpeg)] = jpeg
        ends = np.arange(count + 1, dtype=np.int32) * content.shape[1]
        pictures = pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(ends), pa.py_buffer(content)])
        ids = [f"picture-{number:08d}" for number in range(start, start + count)]
        columns = {
            "image": pa.StructArray.from_arrays([pictures, pa.array([f"{id}.png" for id in ids])], ["bytes", "path"]),
            "image_id": pa.array(ids),
            "text": pa.array([SENTENCE] * count),
            "masks": pa.nulls(count, DATASET.field("masks").type),
            "truth": pa.nulls(count, pa.string()),
            "group": pa.nulls(count, pa.string()),
        }
        table = pa.table(columns).cast(DATASET)
        pq.write_table(table, folder / f"part-{start // FILE_ROWS:05d}.parquet", row_group_size=ROW_GROUP)


def _jpeg(draw: np.random.Generator) -> bytes:
    """16x16 pixels of noise."""
    buffer = io.BytesIO()
    Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Look:
    """Where the run stood at one moment."""

    seconds: float
    done: int
    megabytes: dict[str, float] = field(default_factory=dict)
    """role -> resident memory"""

    @property
    def ours(self) -> float:
        return sum(size for role, size in self.megabytes.items() if role != "ray")


class Watch:
    """Looks at memory every second while a run goes on."""

    def __init__(self) -> None:
        self.looks: list[Look] = []
        self._done = 0

    def follow(self, progress: Progress) -> None:
        self._done = progress.done

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watch]:
        end, started = threading.Event(), time.monotonic()

        def look() -> None:
            while not end.wait(SAMPLE_SECONDS):
                done = self._done
                self.looks.append(Look(time.monotonic() - started, done, memory_by_role()))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            end.set()
            thread.join()

    def around(self, rows: int) -> Look:
        """The first look at which so many rows were done."""
        return next((look for look in self.looks if look.done >= rows), self.looks[-1])


def memory_by_role() -> dict[str, float]:
    """Resident MB of this process and all below it: driver, queue, workers, and what is Ray's own."""
    parents, sizes, names = {}, {}, {}
    page = os.sysconf("SC_PAGE_SIZE")
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, ValueError):
            root = Path("/proc") / process
            parents[int(process)] = int((root / "stat").read_text().rpartition(")")[2].split()[1])
            sizes[int(process)] = int((root / "statm").read_text().split()[1]) * page / 1e6
            names[int(process)] = (root / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    found: dict[str, float] = defaultdict(float)
    for process in sizes:
        above = process
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid():
            role = next((role for name, role in OURS.items() if names.get(process, "").startswith(name)), "ray")
            found["driver" if process == os.getpid() else role] += sizes[process]
    return dict(found)


def resume(config: RunConfig, tracker: str) -> float:
    """Seconds of the same command given again, imports included; it must find nothing to do."""
    recipe = Path(config.output).with_name("idle.yaml")
    recipe.write_text(f"base: {config.recipe.base}\n")
    command = [sys.executable, str(ROOT / "pipelines" / "train_all.py"), "--tracker", tracker, "--runner", RUNNER]
    command += ["--dataset", config.dataset, "--output", config.output, "--recipe", str(recipe)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if "nothing to do" not in done.stdout:
        raise RuntimeError(f"the resumed run said: {done.stdout[-1000:]} {done.stderr[-2000:]}")
    return time.monotonic() - started


def queue_speed(workers: int, shards: int = 20_000) -> float:
    """Shards per second through the queue alone: leased, beaten for once, acknowledged; so many workers hold one."""
    queue = ShardQueue(dict.fromkeys(range(shards), 1), {})
    held = {f"worker-{number}": queue.lease(f"worker-{number}", 0.0) for number in range(workers)}
    started, done = time.monotonic(), 0
    while held:
        for worker, lease in list(held.items()):
            queue.heartbeat(worker, lease.shard, 1, 0.0)
            queue.acknowledge(worker, lease.shard, Tally(learned=1))
            done += 1
            following = queue.lease(worker, 0.0)
            if isinstance(following, Lease):
                held[worker] = following
            else:
                del held[worker]
    return done / (time.monotonic() - started)


def measure(rows: int, workers: int, shard_size: int, tracker: str, folder: Path) -> dict:
    started = time.monotonic()
    write_dataset(folder / "dataset", rows)
    print(f"dataset of {rows} rows: {time.monotonic() - started:.0f} s", flush=True)
    base = folder / "base"  # a name that the command line takes; nothing is in it
    base.mkdir()
    config = RunConfig(
        dataset=str(folder / "dataset"),
        output=str(folder / "bank"),
        recipe=Recipe(name="idle", base=str(base)),
        placement=Placement(workers=workers, shard_size=shard_size, pack=shard_size),
    )
    watch = Watch()
    with watch.watching():
        started = time.monotonic()
        summary = record.learn_dataset(config, tracker=tracker, runner=RUNNER, on_progress=watch.follow)
        closing = time.monotonic() - started - summary.seconds
    assert summary.learned == rows, summary
    first, tenth, last = watch.around(1), watch.around(rows // 10), watch.around(rows)
    closed = [look for look in watch.looks if look.seconds > last.seconds]
    for look in watch.looks[:: max(1, len(watch.looks) // 20)]:
        memory = ", ".join(f"{role} {size:.0f}" for role, size in sorted(look.megabytes.items()))
        print(f"{look.seconds:6.0f} s {look.done:8d} rows   MB: {memory}", flush=True)
    store = open_store(config.output)
    started = time.monotonic()
    parts = len(plan.parts_present(store))
    listing = time.monotonic() - started
    again, size = resume(config, tracker), sum(entry.size for entry in store.list("part-"))
    started = time.monotonic()
    compacted = compact(config.output)
    compaction = time.monotonic() - started
    return {
        "rows": rows,
        "workers": workers,
        "shard_size": shard_size,
        "parts": parts,
        "pictures_per_s": round((last.done - first.done) / max(1e-9, last.seconds - first.seconds), 1),
        "start_up_s": round(first.seconds, 1),
        "whole_s": round(summary.seconds, 1),
        "tracker": tracker,
        "closing_s": round(closing, 1),
        "closing_driver_mb": round(max((look.megabytes["driver"] for look in closed), default=0)),
        "peak_memory_mb": round(max(look.ours for look in watch.looks)),
        "memory_at_10_percent_mb": round(tenth.ours),
        "memory_at_end_mb": round(last.ours),
        "memory_growth": round(last.ours / tenth.ours, 3),
        "memory_mb": {role: [round(tenth.megabytes[role]), round(last.megabytes[role])] for role in last.megabytes},
        "listing_s": round(listing, 2),
        "queue_shards_per_s": {str(count): round(queue_speed(count)) for count in (1, 8, 64, 512)},
        "resume_s": round(again, 1),
        "bank_bytes_per_row": round(size / rows),
        "compaction_s": round(compaction, 1),
        "compact_files": compacted.files,
        "parts_left": compacted.left,
        "compacted_resume_s": round(resume(config, tracker), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument("--tracker", choices=("mlflow", "none"), default="mlflow")
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the figures here, as JSON")
    parser.add_argument("--folder", type=Path, help="where dataset and bank go, 13 GB for a million; else temporary")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="mcpl-control-plane-") as folder:
        found = measure(options.rows, options.workers, options.shard_size, options.tracker, Path(folder))
    from benchmarks.provenance import say  # not above: workers import this module, and need none of that

    say(found, "benchmarks.control_plane", options.write)


if __name__ == "__main__":
    main()
