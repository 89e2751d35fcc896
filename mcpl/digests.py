"""Is a base made of the files that the record beside it, `digest.json`, tells of?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from mcpl.errors import ConfigError

ASSETS = Path(__file__).resolve().parent / "assets"


def check_files(directory: Path, *only: str) -> None:
    """Raise ConfigError that names the first recorded file that is missing or other than recorded.

    What ships with the package must have a record; another directory is taken as it is where it has none.
    only  names of files to look at, instead of all
    """
    record = directory / "digest.json"
    if not record.is_file():
        if directory.resolve().is_relative_to(ASSETS):
            raise ConfigError(f"{directory}: no digest.json beside the shipped base: install the package again")
        return
    for name, expected in json.loads(record.read_text())["files"].items():
        path = directory / name
        if only and name not in only:
            continue
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ConfigError(
                f"{path} is not the file that {record} tells of: install the package again, or export the base anew"
            )
