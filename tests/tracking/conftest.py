"""A fresh tracking database, fake bank rows, and a real PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mcpl.types import BankRow, Concept, CurvePoint, LearnedConcept, LearnedConcepts, Provenance
from tests.mlflow_server import Server, running
from tests.ports import free_port

WIDTH = 8


@pytest.fixture(autouse=True)
def _no_ambient_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def home(tmp_path, migrated) -> Path:
    """A job's folder with a fresh tracking database."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copyfile(migrated, folder / "mlflow.db")
    return folder


@pytest.fixture
def bank_row():
    return _bank_row


def _bank_row(
    index: int, words: tuple[str, ...] = ("bear", "board"), status: str = "learned", tensor=np.asarray, **changes
) -> BankRow:
    """A row as a job would write it; its values follow from its index."""
    rng = np.random.default_rng(index)
    origin = {"recipe": "paper", "recipe_fingerprint": "f" * 16, "base": "tiny", "base_digest": "b" * 64} | changes
    provenance = Provenance(**origin, seed=0, commit="c0ffee", picture_sha256=f"{index:064x}", sentence_sha256="5" * 64)
    text = " and ".join(f"a <{word}>" for word in words)
    if status != "learned":
        return BankRow(f"p{index}", text, status, provenance, reason="not a picture")
    map_ = tensor(np.zeros((4, 4), np.float32))
    concepts = tuple(
        LearnedConcept(Concept(word, "thing"), tensor(rng.normal(size=(2, WIDTH)).astype(np.float32)), map_, map_)
        for word in words
    )
    curve = tuple(CurvePoint(step, 1.0 / (1 + step) + index, 0.5, 1.0, 0.1) for step in (0, 10, 20))
    losses = {"denoising": (3.0 + index, 1.0 + index)}
    learned = LearnedConcepts(f"p{index}", concepts, curve, losses, steps=20, sample_passes=100)
    return BankRow(f"p{index}", text, "learned", provenance, learned=learned, metrics={"assignment": index / 10})


@pytest.fixture
def postgres() -> Iterator[str]:
    """URI of an empty database in a PostgreSQL of its own: Debian's, installed where that is possible, else a skip."""
    pytest.importorskip("psycopg2")
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL's initdb is not here, and apt-get cannot install it")
    folder = Path(tempfile.mkdtemp(prefix="mcpl-postgres-"))
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    port = free_port()

    def call(program: str, *arguments: object) -> None:
        command = [*as_user, str(programs / program), *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, timeout=240)

    data, where = folder / "data", ("-h", "127.0.0.1", "-p", port)
    call("initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync")
    listen = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -F"
    call("pg_ctl", "-D", data, "-l", folder / "log", "-o", listen, "-w", "-t", 120, "start")
    try:
        call("createdb", *where, "-U", "postgres", "mlflow")
        yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/mlflow"
    finally:
        call("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def _postgres_programs() -> Path | None:
    """Folder of initdb and pg_ctl of the newest PostgreSQL."""

    def found() -> Path | None:
        return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda path: float(path.parent.name))

    if not found() and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "timeout": 300}
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "postgresql"]):
            subprocess.run(command, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, **quiet)
    return found()


@pytest.fixture
def postgres_server(tmp_path, postgres) -> Iterator[Server]:
    """`mlflow server` as a team would run it, on PostgreSQL."""
    with running(tmp_path / "server", postgres) as server:
        yield server
