"""How fast are words looked up in a published bank of a million pictures, and how much is missed?

    python -m benchmarks.lookup --rows 1000000 [--width 768] [--words 2] [--folder runs/lookup] [--hard] [--out FILE]

A synthetic bank is published as `train_all` would publish a real one (`tracking.registry.publish`, streamed) and kept
in the folder for the next time. Its words are not random points: each belongs to one of 2,000 concepts, whose
frequencies fall like those of words in a language (Zipf, exponent 0.9); within a concept it varies along 32 directions
that it shares with the like, and has noise of its own of a quarter of that length. --hard varies along no such
directions: noise alone, the worst case for any index.

The look-ups run in a fresh process, which is what is weighed. At the end one line of JSON:

    id_ms, id_p95_ms            the words of one picture, warm: median and 95th percentile
    nearest_ms, nearest_p95_ms  the 10 words nearest to a learned word, warm; nearest_first_ms: the very first
    recall_at_10                share of the true 10 nearest (all words compared) that the look-up gives
    memory_mb, anonymous_mb     most memory held at once, mapped files included; without them, at the end
    load_s, publish_s           opening the version; generating and publishing (null where it was there already)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mcpl.tracking import registry
from mcpl.types import BankRow, Concept, LearnedConcept, LearnedConcepts, Provenance

CONCEPTS, FAMILIES, DIRECTIONS = 2000, 64, 32
NOISE, HARD_NOISE = 0.25, 0.8
BLOCK = 8192
QUERIES = 200
NAME = "lookup-benchmark"


class World:
    """Where synthetic words come from; the same seed gives the same bank."""

    def __init__(self, width: int, hard: bool) -> None:
        rng = np.random.default_rng(1)
        self.width, self.hard = width, hard
        self.centres = rng.normal(size=(CONCEPTS, width)).astype(np.float32)
        self.ways = rng.normal(size=(FAMILIES, DIRECTIONS, width)).astype(np.float32) * 0.8 / np.sqrt(DIRECTIONS)
        falling = 1 / np.arange(1, CONCEPTS + 1) ** 0.9
        self.share = falling / falling.sum()

    def words(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(concepts [count], vectors [count, width])"""
        concepts = rng.choice(CONCEPTS, count, p=self.share)
        noise = HARD_NOISE if self.hard else NOISE
        vectors = self.centres[concepts] + noise * rng.standard_normal((count, self.width), dtype=np.float32)
        if not self.hard:
            along = rng.standard_normal((count, DIRECTIONS), dtype=np.float32)
            for family in range(FAMILIES):
                own = concepts % FAMILIES == family
                vectors[own] += along[own] @ self.ways[family]
        return concepts, vectors


def rows(count: int, words: int, world: World) -> Iterator[BankRow]:
    """Bank rows with nothing in them but what publishing keeps."""
    rng = np.random.default_rng(2)
    attention = np.zeros((1, 1), np.float32)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        concepts, vectors = world.words(size * words, rng)
        names = [f"thing{concept}w{place % words}" for place, concept in enumerate(concepts)]
        ious = rng.uniform(0.2, 0.9, size)
        for i in range(size):
            id, own = f"picture-{start + i:08d}", range(i * words, (i + 1) * words)
            origin = Provenance("synthetic", "0" * 16, "synthetic", "0" * 16, 0, "none", f"{start + i:064x}", "0" * 64)
            learned = LearnedConcepts(
                id,
                tuple(LearnedConcept(Concept(names[j]), vectors[j : j + 1], attention, attention) for j in own),
                (), {}, 0, 0,
            )  # fmt: skip
            text = " and ".join(f"a <{names[j]}>" for j in own)
            yield BankRow(id, text, "learned", origin, learned=learned, metrics={"attention_iou": float(ious[i])})


def publish(given: argparse.Namespace) -> float | None:
    """Seconds that generating and publishing took; None where this bank is there already."""
    marker = given.folder / "published.json"
    told = {"rows": given.rows, "words": given.words, "width": given.width, "hard": given.hard}
    if marker.exists() and json.loads(marker.read_text()) == told:
        return None
    started = time.monotonic()
    registry.publish(
        rows(given.rows, given.words, World(given.width, given.hard)), NAME,
        bank="synthetic", large_tables=str(given.folder / "tables"), home=given.folder,
    )  # fmt: skip
    marker.write_text(json.dumps(told))
    return time.monotonic() - started


def truth(directions: np.ndarray, folder: Path) -> np.ndarray:
    """Positions of the 10 nearest words, by comparing all of them. [queries, 10]"""
    words = registry.load(NAME, home=folder).unwrap_python_model()
    best, places = np.full((len(directions), 0), 0, np.float32), np.zeros((len(directions), 0), np.int64)
    for start in range(0, len(words._places), 16_384):
        block = np.arange(start, min(start + 16_384, len(words._places)))
        near = np.concatenate([best, directions @ words._unit(block).T], axis=1)
        there = np.concatenate([places, np.broadcast_to(block, (len(directions), len(block)))], axis=1)
        top = np.argpartition(-near, 9, axis=1)[:, :10]
        best, places = np.take_along_axis(near, top, 1), np.take_along_axis(there, top, 1)
    return places


def look_up(folder: Path, queries: int) -> dict:
    """What a fresh process measures; its answers are left in answers.npz for `truth`."""
    rng = np.random.default_rng(3)
    started = time.monotonic()
    words = registry.load(NAME, home=folder).unwrap_python_model()
    measured = {"load_s": time.monotonic() - started}
    total = len(words._places)
    asked = rng.choice(total, queries + 1, replace=False)
    first = time.monotonic()
    words.nearest(words._vectors(asked[-1]), 10)
    measured["nearest_first_ms"] = 1000 * (time.monotonic() - first)
    by_id = []
    for position in asked[:queries]:
        id = words._keys["image_id"][int(position)].as_py()
        before = time.monotonic()
        found = words.rows(words.find({"image_id": id}).tolist())
        by_id.append(time.monotonic() - before)
        assert {row["image_id"] for row in found} == {id}
    nearest, answers, directions = [], [], []
    for position in asked[:queries]:
        noisy = words._vectors(position)[0] + 0.05 * rng.standard_normal(words.manifest["width"]).astype(np.float32)
        before = time.monotonic()
        found = words.nearest(noisy, 10)
        nearest.append(time.monotonic() - before)
        assert len(found) == 10
        directions.append(noisy / np.linalg.norm(noisy))
        answers.append(words._ranked(directions[-1], 500)[0][:10])
    np.savez(folder / "answers.npz", directions=np.stack(directions), answers=np.array(answers))
    for name, values in (("id", by_id), ("nearest", nearest)):
        measured[f"{name}_ms"], measured[f"{name}_p95_ms"] = (1000 * np.percentile(values, p) for p in (50, 95))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    measured["memory_mb"] = int(status["VmHWM"].split()[0]) / 1024
    measured["anonymous_mb"] = int(status["RssAnon"].split()[0]) / 1024
    return {name: round(float(value), 2) for name, value in measured.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=1_000_000, help="pictures")
    options.add_argument("--words", type=int, default=2, help="of each picture")
    options.add_argument("--width", type=int, default=768)
    options.add_argument("--hard", action="store_true", help="words vary by noise alone")
    options.add_argument("--queries", type=int, default=QUERIES)
    options.add_argument("--folder", type=Path, default=None, help="default runs/lookup-ROWS")
    options.add_argument("--out", type=Path, help="also keep the figures in this JSON file")
    options.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    given.folder = given.folder or Path(f"runs/lookup-{given.rows}{'-hard' if given.hard else ''}")
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.measure:
        print(json.dumps(look_up(given.folder, given.queries)))
        return
    from benchmarks.provenance import machine  # not above: it loads torch, and the process of the look-ups is weighed

    published = publish(given)
    again = [sys.executable, "-m", "benchmarks.lookup", *sys.argv[1:], "--folder", str(given.folder), "--measure"]
    done = subprocess.run(again, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    measured = json.loads(done.stdout.splitlines()[-1])
    kept = np.load(given.folder / "answers.npz")
    wanted = truth(kept["directions"], given.folder)
    hits = [len(set(a) & set(w)) / 10 for a, w in zip(kept["answers"].tolist(), wanted.tolist(), strict=True)]
    sizes = {e["name"]: e["bytes"] for e in registry.manifest(NAME, home=given.folder)["files"]}
    result = {
        "rows": given.rows, "words": given.rows * given.words, "width": given.width, "hard": given.hard,
        **measured, "recall_at_10": round(float(np.mean(hits)), 4), "queries": given.queries,
        "publish_s": None if published is None else round(published, 1), "bytes": sizes,
        **machine("benchmarks.lookup"),
    }  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
