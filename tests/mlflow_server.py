"""`mlflow server` for tests and benchmarks: real, on this machine, and killed without mercy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ports import free_port

SERVER_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes that nothing here needs
}


class Server:
    """`mlflow server` on a free port of this machine, in its own process group."""

    def __init__(self, folder: Path, backend: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.backend = folder, backend
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> Server:
        options = {
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
            "--backend-store-uri": self.backend,
            "--artifacts-destination": str(self.folder / "artifacts"),
        }
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *(part for pair in options.items() for part in pair)],
                cwd=self.folder,
                env=os.environ | SERVER_SETTINGS,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return self
            except OSError:
                assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
                time.sleep(0.3)
        raise AssertionError("mlflow server did not start: " + (self.folder / "log").read_text()[-2000:])

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextmanager
def running(folder: Path, backend: str) -> Iterator[Server]:
    """A server that answers, until the end of the block; backend: URI of its database."""
    server = Server(folder, backend)
    try:
        yield server.start()
    finally:
        server.kill()
