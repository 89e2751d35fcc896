"""Do the committed results still follow from their raw rows, and are they of the shipped base?

    python -m benchmarks.results_follow [--results docs/results] [--write]

    follow    each table is made again from the raw file beside it and compared byte by byte: a study's report.md
              from study.json and raw.parquet, a recipe benchmark's table.md from raw.parquet, ceilings.md from
              ceilings.json. A test-split.md above it tells of a study of the test split. Anything else fails (exit 1)
    stale     results whose base digest is not the shipped base's: named, no failure, to be measured again

--write makes reports, figures and tables again from their rows first, where the way in which they are told has changed.
A new kind of result is a function and one line of `KINDS`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks import ceilings, recipes
from mcpl.config import Recipe
from mcpl.models.catalogue import CATALOGUE
from mcpl.models.stable_diffusion import files_digest
from mcpl.orchestration.study_report import RAW, REPORT, markdown, pictures, png, read_raw, study_of

BASE = Path(CATALOGUE[Recipe().base].source)
USES = "test-split.md"


def study(file: Path) -> Iterator[str]:
    """study.json, raw.parquet and report.md in one folder."""
    folder = file.parent
    plan = study_of(file.read_bytes())
    if (folder / REPORT).read_text() != markdown(plan, read_raw((folder / RAW).read_bytes())):
        yield f"{folder / REPORT} does not follow from {RAW}"
    if plan.split == "test" and not _noted(folder, plan.name):
        yield f"{folder}: a use of the test split that {USES} does not tell of"


def _noted(folder: Path, name: str) -> bool:
    """Whether a log of uses above the folder names the study."""
    logs = [above / USES for above in folder.parents if (above / USES).is_file()]
    return any(f"study.py {name}" in log.read_text() for log in logs)


def recipe_table(file: Path) -> Iterator[str]:
    """raw.parquet and table.md in one folder."""
    if file.read_text() != _recipe_table(file):
        yield f"{file} does not follow from {RAW}"


def _recipe_table(file: Path) -> str:
    title, _, _ = file.read_text().partition("\n")
    rows = pq.read_table(file.parent / RAW).to_pylist()
    labels = list(dict.fromkeys(row["recipe"] for row in rows))
    return recipes.table(rows, labels, title.removeprefix("# "))


def ceiling_table(file: Path) -> Iterator[str]:
    """ceilings.json and ceilings.md side by side."""
    if ceilings.table(json.loads(file.read_text())["sets"]) not in file.with_suffix(".md").read_text():
        yield f"{file.with_suffix('.md')} does not follow from {file.name}"


KINDS: Mapping[str, Callable[[Path], Iterator[str]]] = {
    "**/study.json": study,
    "**/table.md": recipe_table,
    "ceilings.json": ceiling_table,
}
"""the file that tells a kind of result, under docs/results -> what does not follow from it"""


def faults(results: Path) -> tuple[list[str], int]:
    """What does not follow, and how many results were looked at."""
    files = [(check, file) for pattern, check in KINDS.items() for file in sorted(results.glob(pattern))]
    found: list[str] = []
    for check, file in files:
        try:
            found += check(file)
        except (OSError, ValueError, KeyError) as error:
            found.append(f"{file}: cannot be made again: {' '.join(str(error).split())[:200]}")
    return found, len(files)


def make_again(results: Path) -> Iterator[Path]:
    """Write reports, figures and tables anew from their raw rows, after a change to how they are told; what is new."""
    for file in sorted(results.glob("**/study.json")):
        folder = file.parent
        plan, rows = study_of(file.read_bytes()), read_raw((folder / RAW).read_bytes())
        made = {REPORT: markdown(plan, rows).encode()} | {name: png(image) for name, image in pictures(plan, rows)}
        yield from (folder / name for name, content in made.items() if _put(folder / name, content))
    for file in sorted(results.glob("**/table.md")):
        if _put(file, _recipe_table(file).encode()):
            yield file


def _put(file: Path, content: bytes) -> bool:
    """Write a file; whether that changed it."""
    if file.is_file() and file.read_bytes() == content:
        return False
    file.write_bytes(content)
    return True


def stale(results: Path, digest: str) -> list[str]:
    """Results that tell of a base, and not of this one."""
    told = {file: set(_digests(json.loads(file.read_text()))) for file in sorted(results.glob("**/*.json"))}
    for file in sorted(results.glob(f"**/{RAW}")):
        if "base_digest" in pq.read_schema(file).names:
            told[file] = set(pq.read_table(file, columns=["base_digest"])["base_digest"].to_pylist()) - {None}
    return [f"{file}: base {', '.join(sorted(own))}" for file, own in told.items() if own and own != {digest}]


def _digests(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from [inner] if name == "base_digest" and isinstance(inner, str) else _digests(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _digests(inner)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--results", type=Path, default=Path("docs/results"))
    options.add_argument("--write", action="store_true", help="make reports, figures and tables again from their rows")
    given = options.parse_args()
    for file in make_again(given.results) if given.write else ():
        print(f"written: {file}")
    digest = files_digest(BASE)
    found, checked = faults(given.results)
    old = stale(given.results, digest)
    for one in found:
        print(f"does not follow: {one}")
    for one in old:
        print(f"stale: {one}; shipped is {digest}")
    print(json.dumps({"checked": checked, "faults": len(found), "stale": len(old), "base_digest": digest}))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
