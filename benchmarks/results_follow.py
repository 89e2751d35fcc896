"""Do the committed results still follow from their raw rows, and are they of the shipped base?

    python -m benchmarks.results_follow [--results docs/results] [--write]

    follow    each table is made again from the raw file beside it and compared byte by byte: a study's report.md
              from study.json and raw.parquet, a recipe benchmark's table.md from raw.parquet, ceilings.md from
              ceilings.json. A test-split.md above it tells of a study of the test split. Anything else fails (exit 1)
    stale     results whose base digest is not the shipped base's: named, no failure, to be measured again

--write makes reports, figures and tables again from their rows first, where the way in which they are told has changed.
A new kind of result is a function and one line of `KINDS`, its figures one of `FIGURES`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from benchmarks import ceilings, recipes
from mcpl.config import Recipe
from mcpl.models.catalogue import CATALOGUE
from mcpl.models.stable_diffusion import files_digest
from mcpl.orchestration.study_report import RAW, REPORT, markdown, pictures, png, read_raw, study_of

BASE = Path(CATALOGUE[Recipe().base].source)
USES = "test-split.md"


Made = Iterator[tuple[Path, str, str]]
"""(file, what it should hold, the file that this follows from)"""
Drawn = Iterator[tuple[Path, Image.Image]]
"""(file, what it should show)"""


def study(file: Path) -> Made:
    """study.json, raw.parquet and report.md in one folder."""
    folder = file.parent
    yield folder / REPORT, markdown(study_of(file.read_bytes()), read_raw((folder / RAW).read_bytes())), RAW


def recipe_table(file: Path) -> Made:
    """raw.parquet and table.md in one folder."""
    title, _, _ = file.read_text().partition("\n")
    yield file, recipes.table(*_recipe_rows(file.parent), title.removeprefix("# ")), RAW


def _recipe_rows(folder: Path) -> tuple[list[recipes.Row], list[str]]:
    """The raw rows of a table of recipes, and the recipes in their order."""
    rows = pq.read_table(folder / RAW).to_pylist()
    return rows, list(dict.fromkeys(row["recipe"] for row in rows))


def ceiling_table(file: Path) -> Made:
    """ceilings.json and ceilings.md side by side."""
    yield file.with_suffix(".md"), ceilings.page(json.loads(file.read_text())), file.name


KINDS: Mapping[str, Callable[[Path], Made]] = {
    "**/study.json": study,
    "**/table.md": recipe_table,
    "ceilings.json": ceiling_table,
}
"""the file that tells a kind of result, under docs/results -> what follows from it"""


def study_figures(file: Path) -> Drawn:
    """The figures beside study.json and raw.parquet."""
    for name, image in pictures(study_of(file.read_bytes()), read_raw((file.parent / RAW).read_bytes())):
        yield file.parent / name, image


def recipe_figure(file: Path) -> Drawn:
    """The figure itself, beside raw.parquet: drawn again where one is kept."""
    yield file, recipes.figure(*_recipe_rows(file.parent))


FIGURES: Mapping[str, Callable[[Path], Drawn]] = {
    "**/study.json": study_figures,
    f"**/{recipes.FIGURE}": recipe_figure,
}
"""the file that tells that there are figures -> what they show"""


def faults(results: Path) -> tuple[list[str], int]:
    """What does not follow, and how many results were looked at."""
    found: list[str] = []
    files = [(made, file) for pattern, made in KINDS.items() for file in sorted(results.glob(pattern))]
    for made, file in files:
        try:
            for path, text, source in made(file):
                if path.read_text() != text:
                    found.append(f"{path} does not follow from {source}")
            found += _unnoted(file)
        except (OSError, ValueError, KeyError) as error:
            found.append(f"{file}: cannot be made again: {' '.join(str(error).split())[:200]}")
    return found, len(files)


def _unnoted(file: Path) -> Iterator[str]:
    """A study of the test split that no log of uses above its folder names."""
    if file.name != "study.json" or (plan := study_of(file.read_bytes())).split != "test":
        return
    logs = [above / USES for above in file.parent.parents if (above / USES).is_file()]
    if not any(f"study.py {plan.name}" in log.read_text() for log in logs):
        yield f"{file.parent}: a use of the test split that {USES} does not tell of"


def make_again(results: Path) -> Iterator[Path]:
    """Write what follows from raw rows anew, figures too, after a change to how it is told; what is new."""
    for pattern, made in KINDS.items():
        for file in sorted(results.glob(pattern)):
            yield from (path for path, text, _ in made(file) if _put(path, text.encode()))
    for pattern, drawn in FIGURES.items():
        for file in sorted(results.glob(pattern)):
            yield from (path for path, image in drawn(file) if _put(path, png(image)))


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
