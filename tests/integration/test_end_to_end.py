"""The thin line through the whole house, with the real learner on the tiny base: Parquet in, Ray, MLflow, registry."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mcpl.config import Placement, Recipe, RunConfig
from mcpl.data.bank import COMPARED_COLUMNS, Bank
from mcpl.data.sources import write_dataset
from mcpl.orchestration import fanout
from mcpl.tracking.server import speaking_to
from mcpl.types import Example
from tests.integration.conftest import ROOT, clean_environment

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

TEXTS = ("a red <star> left of a blue <ring>", "a <moon>", "a green <heart> above a thing", "no mark here")


def png(i: int) -> bytes:
    picture = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def dataset(tmp_path):
    examples = [Example(f"picture/{i}", png(i), TEXTS[i % len(TEXTS)]) for i in range(12)]
    examples[5] = Example("picture/5", b"torn", TEXTS[0])
    write_dataset(examples, tmp_path / "dataset", row_group=4)
    return tmp_path / "dataset"


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_dataset_becomes_a_registered_model(dataset, tmp_path, tiny_base_dir):
    recipe = tmp_path / "quick.yaml"
    recipe.write_text(f"base: {tiny_base_dir}\nsteps: 4\nbatch: 2\nprobe_every: 2\nprobe_timesteps: 2\n")
    placed = ["--dataset", dataset, "--recipe", recipe, "--shard-size", 2, "--pack", 2, "--max-failed-share", 0.5]
    train = ["pipelines/train_all.py", *placed, "--output", tmp_path / "bank", "--tracker", "mlflow"]

    first = command(*train, "--workers", 2, "--publish", "words")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "12 of 12" in first.stdout and "published as words version 1" in first.stdout

    bank = Bank.open(tmp_path / "bank")
    assert bank.summary().status == {"learned": 8, "failed": 4}
    assert sorted(bank.ids()) == sorted(f"picture/{i}" for i in range(12))
    assert all(row.reason for row in bank.rows() if row.status == "failed")

    # the same rows, byte for byte, learned in this process at the same pack size
    config = RunConfig(
        dataset=str(dataset),
        output=str(tmp_path / "inline"),
        recipe=Recipe(name="quick", base=str(tiny_base_dir), steps=4, batch=2, probe_every=2, probe_timesteps=2),
        placement=Placement(shard_size=2, pack=2),
    )
    fanout.run(config, inline=True)
    columns = list(COMPARED_COLUMNS)
    alone, spread = (Bank.open(tmp_path / name).table(columns).sort_by("id") for name in ("inline", "bank"))
    assert alone.equals(spread)

    # MLflow holds one run, with curves, overlays and the bank; the registry finds words and pictures
    import mlflow

    with speaking_to(f"sqlite:///{tmp_path}/mlflow.db"):  # other tests of this process must not meet this database
        (run,) = mlflow.search_runs(experiment_names=["mcpl"], output_format="list")
        assert run.info.status == "FINISHED"
        assert run.data.params["recipe.steps"] == "4" and run.data.metrics["pictures/learned"] == 8
        kept = {item.path for item in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
        assert {"recipe.yaml", "bank", "overlays", "pictures.md", "curves.png", "report"} <= kept
        assert run.inputs.dataset_inputs[0].dataset.name == "dataset"

        words = mlflow.pyfunc.load_model("models:/words@champion")
        found = words.predict({"word": ["moon"]})
        assert sorted(found["image_id"]) == ["picture/1", "picture/9"]
        assert set(words.predict({"image_id": ["picture/0"]})["word"]) == {"star", "ring"}
        expected = next(h for h in bank.search("moon") if h.id == "picture/1").vectors
        (vector,) = found[found.image_id == "picture/1"].vectors
        assert np.allclose(np.asarray(vector), expected)

        # the same command again: nothing to do, still one run and one version
        again = command(*train, "--workers", 2, "--publish", "words")
        assert again.returncode == 0 and "nothing to do" in again.stdout
        assert "version 1" in again.stdout
        assert len(mlflow.search_runs(experiment_names=["mcpl"], output_format="list")) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"--dataset": "nowhere"}, "nowhere"),
        ({"--recipe": "papre"}, "papre"),
        ({"--tracking-uri": "./mlruns"}, "sqlite:///"),
        ({"--output": "http://example.org/x"}, "http"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_learned(dataset, tmp_path, change, told):
    options = {"--dataset": dataset, "--output": tmp_path / "bank", "--tracker": "mlflow", "--recipe": "paper"} | change
    done = command("pipelines/train_all.py", *[part for pair in options.items() for part in pair])
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("train_all: ")]
    assert len(lines) == 1 and told in lines[0] and "Traceback" not in done.stderr, done.stderr
    assert not list(tmp_path.glob("bank/part-*"))


def test_a_parquet_without_the_columns_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"caption": ["a <star>"]}), tmp_path / "wrong.parquet")
    done = command("pipelines/train_all.py", "--dataset", tmp_path / "wrong.parquet", "--output", tmp_path / "bank")
    assert done.returncode == 1
    assert re.search(r"^train_all: .*image", done.stderr, re.M) and "caption" in done.stderr


def test_an_output_of_another_recipe_is_left_alone(dataset, tmp_path, tiny_base_dir):
    recipe = tmp_path / "quick.yaml"
    recipe.write_text(f"base: {tiny_base_dir}\nsteps: 1\nbatch: 2\nprobe_timesteps: 2\n")
    train = ["pipelines/train_all.py", "--dataset", dataset, "--output", tmp_path / "bank", "--inline"]
    train += ["--recipe", recipe, "--max-failed-share", 1]
    assert command(*train).returncode == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "bank").glob("part-*")}
    other = command(*train, "--seed", 1)
    assert other.returncode == 1 and "train_all: " in other.stderr and "--output" in other.stderr
    assert {p.name: p.read_bytes() for p in (tmp_path / "bank").glob("part-*")} == before
