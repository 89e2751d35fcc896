"""What a server could not take, kept in order in a folder until it can.

One small file per message, an artifact's content beside it; a delivered message is deleted. A message is written
whole (rename), so that a kill leaves it either there or not.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal


@dataclass(frozen=True)
class Message:
    """One thing that a run says."""

    kind: Literal["start", "metrics", "tags", "note", "artifact", "finish"]
    body: dict[str, Any]
    content: Path | bytes | None = field(default=None, repr=False)
    """of an artifact"""


class Refused(Exception):
    """The server answered, and will never take this message."""


class Spool:
    """A run's undelivered messages, oldest first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: IO | None = None

    def __len__(self) -> int:
        return len(self._files())

    def claim(self) -> bool:
        """Make the folder this process's own; False while another process uses it."""
        if self._lock is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                return False
            self._lock = lock
        return True

    def put(self, message: Message) -> None:
        self.claim()
        files = self._files()
        stem = f"{int(files[-1].stem) + 1 if files else 1:08d}"
        if message.content is not None:
            content = self.folder / f"{stem}.content"
            if isinstance(message.content, bytes):
                content.write_bytes(message.content)
            else:
                shutil.copyfile(message.content, content)
        written = self.folder / f"{stem}.writing"
        written.write_text(json.dumps({"kind": message.kind, "body": message.body}))
        os.replace(written, self.folder / f"{stem}.json")

    def deliver(self, send: Callable[[Message], None]) -> int:
        """Send what waits, oldest first, and return how many were taken; stops at the first error of `send`.

        A refused message is set aside as `refused-N.json`: it must not hold back those behind it.
        """
        taken = 0
        for path, message in self._messages():
            content = path.with_suffix(".content")
            try:
                send(message)
                taken += 1
            except Refused as reason:
                told = asdict(message) | {"content": None, "reason": str(reason)}
                (self.folder / f"refused-{path.stem}.json").write_text(json.dumps(told))
            path.unlink()
            content.unlink(missing_ok=True)
        if self._lock and not any(self.folder.glob("*.json")):
            shutil.rmtree(self.folder)
            self._lock.close()
            self._lock = None
        return taken

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.json"))

    def _messages(self) -> Iterator[tuple[Path, Message]]:
        for path in self._files():
            content = path.with_suffix(".content")
            yield path, Message(**json.loads(path.read_text()), content=content if content.exists() else None)
