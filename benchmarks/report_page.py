"""How fast the page of a bank opens and how smoothly it scrolls, in a real browser:

    python -m benchmarks.report_page --pictures 1000

Prints one line for each look at it and ends in one JSON line: open_s (from asking for the file to the pictures and
maps of the first screen; the median of `--repeats`), longest_frame_ms (the longest time between two frames while every
picture of the first page, and of the last, scrolls by), write_s and bytes of the page.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import synthetic_bank
from benchmarks.browser import browser
from benchmarks.provenance import say
from mcpl.orchestration.reporting import write_report

FIRST_SCREEN = """
const done = arguments[0];
const drawn = (item) => item.dataset.filled && [...item.querySelectorAll('img')].every((image) => image.complete);
const look = () => {
  const all = [...document.querySelectorAll('#gallery li')];
  const places = new Map(all.map((item) => [item, item.getBoundingClientRect()]));
  const seen = all.filter((item) => places.get(item).top < innerHeight && places.get(item).bottom > 0);
  seen.length && seen.every(drawn) ? requestAnimationFrame(() => done(performance.now())) : requestAnimationFrame(look);
};
look();
"""
SCROLL = """
const [step, done] = arguments;
let longest = 0, frames = 0, before = null;
scrollTo(0, 0);
const frame = (now) => {
  if (before !== null) { longest = Math.max(longest, now - before); frames += 1; }
  before = now;
  if (scrollY + innerHeight >= document.documentElement.scrollHeight - 2) return done({longest, frames});
  scrollBy(0, step);
  requestAnimationFrame(frame);
};
setTimeout(() => requestAnimationFrame(frame), 300);
"""
STEP = 40
"""CSS pixels a frame: 2400 a second at 60 frames, a quick flick"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pictures", type=int, default=1000)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--write", type=Path, help="also keep the last line in this file")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        say(measure(Path(scratch), asked.pictures, asked.repeats), "benchmarks.report_page", asked.write)


def measure(folder: Path, pictures: int, repeats: int) -> dict:
    """Write a page of so many pictures and look at it."""
    bank, dataset = synthetic_bank.write(folder, pictures)
    started = time.monotonic()
    written = write_report(str(bank), str(dataset), str(folder / "page"))
    write_s, opens, longest = time.monotonic() - started, [], []
    with browser(folder / "profile") as driver:
        for _ in range(repeats):
            driver.get("about:blank")
            driver.get((folder / "page" / "index.html").as_uri())
            opens.append(driver.execute_async_script(FIRST_SCREEN) / 1000)
            for page in ("first", "last"):
                driver.execute_script("document.getElementById(arguments[0]).click()", page)
                longest.append(driver.execute_async_script(SCROLL, STEP)["longest"])
            print(f"open {opens[-1]:.2f} s, longest frame {max(longest[-2:]):.0f} ms", flush=True)
        errors = [line["message"] for line in driver.get_log("browser") if line["level"] == "SEVERE"]
    return {
        "pictures": pictures,
        "open_s": round(statistics.median(opens), 3),
        "open_s_each": [round(value, 3) for value in opens],
        "longest_frame_ms": round(statistics.median(longest), 1),
        "longest_frame_ms_worst": round(max(longest), 1),
        "write_s": round(write_s, 1),
        "bytes": written.bytes,
        "files": written.files,
        "console_errors": errors,
    }


if __name__ == "__main__":
    main()
