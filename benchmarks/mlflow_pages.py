"""What people see in MLflow, as pictures: a server, a small bank, a published version, a sweep, a browser.

    python -m benchmarks.mlflow_pages --out docs/images

Takes minutes: the bank and the sweep are learned. `--keep FOLDER` keeps them, and learns nothing the next time.
Prints a line for each picture, and ends in one JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from benchmarks.browser import browser
from benchmarks.processes import at_once
from benchmarks.provenance import machine
from mcpl.tracking.server import connect
from tests.mlflow_server import running

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL, TRIALS, PICTURES = "scene-words", 4, 6
WIDTH = 1280
CLOSE_ASSISTANT = """document.querySelector('[data-component-id="mlflow.assistant.chat_panel.close"]')?.click()"""
PATIENCE = 60.0
"""seconds that a page may take to show what it is looked at for"""


@dataclass(frozen=True)
class View:
    """One page: where it is, how high the window is, and the words that are there once it has loaded."""

    name: str
    path: str
    shows: str
    height: int = 900


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=Path("docs/images"))
    options.add_argument("--keep", type=Path, metavar="FOLDER", help="keep what is learned there, and use it again")
    asked = options.parse_args()
    with ExitStack() as stack:
        folder = asked.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pages-")))
        folder.mkdir(parents=True, exist_ok=True)
        uri = stack.enter_context(running(folder / "server", f"sqlite:///{folder.resolve()}/server.db")).uri
        learn(folder, uri)
        asked.out.mkdir(parents=True, exist_ok=True)
        driver = stack.enter_context(browser(folder / "profile", WIDTH))
        sizes = {}
        for view in views(connect(uri)):
            picture = taken(driver, uri, view)
            (asked.out / f"{view.name}.png").write_bytes(picture)
            sizes[view.name] = len(picture)
            print(f"{view.name}.png: {len(picture) / 1000:.0f} kB", flush=True)
    print(json.dumps({"pictures": sizes, **machine("benchmarks.mlflow_pages")}))


def learn(folder: Path, uri: str) -> None:
    """A bank, a version of it and a sweep, tracked by the server; what is there already stays as it is."""
    data, bank, sweep = (str(folder / name) for name in ("scenes", "words", "sweep"))
    tracked = ["--tracking-uri", uri]
    steps = {
        data: f"pipelines/build_dataset.py scenes --n {PICTURES} --seed 1 --out {data}",
        bank: f"pipelines/train_all.py --dataset {data} --output {bank} --recipe best --steps 100 --pack 3 --samples 2 "
        f"--publish {MODEL} --alias champion",
        sweep: f"pipelines/sweep.py --space infra/sweeps/tiny.yaml --trials {TRIALS} --out {sweep}",
    }
    for result, command in steps.items():
        if not Path(result).exists():
            at_once([command.split() + (tracked if result != data else [])])


def views(client: MlflowClient) -> Iterator[View]:
    """The pages that somebody opens one after the other."""
    experiment = client.get_experiment_by_name("mcpl").experiment_id
    runs = client.search_runs([experiment])
    job = next(run for run in runs if "mcpl.trial" not in run.data.tags)
    best = next(run for run in runs if "mcpl.best_of" in run.data.tags)
    (version,) = client.search_model_versions(f"name = '{MODEL}'")
    of = f"experiments/{experiment}"
    yield View("mlflow-runs", f"{of}/runs", job.info.run_name)
    yield View("mlflow-run", f"{of}/runs/{job.info.run_id}", "Parameters")
    yield View("mlflow-metrics", f"{of}/runs/{job.info.run_id}/model-metrics", "fidelity")
    yield View("mlflow-report", f"{of}/runs/{job.info.run_id}/artifacts/report/index.html", "index.html")
    yield View("mlflow-best", f"{of}/runs/{best.info.run_id}/artifacts/sweep/report.md", "report.md")
    yield View("mlflow-version", f"models/{MODEL}/versions/{version.version}", "learned from")


def taken(driver, uri: str, view: View) -> bytes:
    """The page as PNG, once it shows what it should; in 256 colours, which a page of text and few pictures needs."""
    metrics = {"width": WIDTH, "height": view.height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get("about:blank")
    driver.get(f"{uri}/#/{view.path}?workflowType=machine_learning")  # "Model training" at the top left
    deadline = time.monotonic() + PATIENCE
    while view.shows not in driver.execute_script("return document.body.innerText"):
        if time.monotonic() > deadline:
            raise SystemExit(f"{view.name}: the page does not show {view.shows!r}")
        time.sleep(0.2)
    driver.execute_script(CLOSE_ASSISTANT)
    time.sleep(2)  # charts and pictures come after the words
    picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
