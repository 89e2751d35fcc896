"""What a dataset would take: hand-worked figures, and a measurement on the tiny base from file to table."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mcpl.cli import app
from mcpl.config import Placement
from mcpl.data.sources import write_dataset
from mcpl.errors import ConfigError
from mcpl.orchestration import estimate
from mcpl.orchestration.estimate import START_SECONDS, Measured, Plan, reckoned
from mcpl.types import Example
from tests.test_job import png

ON_GPU = Measured(8, 0, 8, seconds_per_picture=10.0, bytes_per_picture=8000.0, load_seconds=45.0, device="H200")


def test_a_million_pictures_of_ten_seconds():
    """2,800 GPU-hours, as everybody reckons it by hand; eight workers share them."""
    one, eight = (reckoned(1_000_000, 62_500, ON_GPU, Placement(gpus_per_worker=1), n) for n in (1, 8))
    assert one.device_hours == pytest.approx(2777.8, abs=0.1)
    assert eight.hours == pytest.approx((START_SECONDS + 45 + 1_250_000) / 3600)
    assert eight.device_hours == pytest.approx(8 * eight.hours)
    whole = Plan("s3://b/d", 1_000_000, 16, ON_GPU, (one, eight))
    assert (whole.parts, whole.bank_bytes, whole.files) == (62_500, 8e9, 31)


def test_shared_gpus_and_idle_workers_cost_what_they_hold():
    shared = Placement(gpus_per_worker=0.25)
    assert reckoned(3600, 225, ON_GPU, shared, 4).device_hours == pytest.approx((9000 + 60) / 3600)
    late = reckoned(32, 2, ON_GPU, Placement(gpus_per_worker=1), 64)  # two shards: 62 workers have nothing to do
    assert late.device_hours == pytest.approx(2 * late.hours) and late.hours == pytest.approx((60 + 160) / 3600)


def dataset(folder, count: int, text: str = "a red <star> left of a blue <ring>") -> str:
    draw = np.random.default_rng(0)
    pictures = [png(draw.integers(0, 255, (20, 24, 3))) for _ in range(count)]
    write_dataset((Example(f"p{i}", picture, text) for i, picture in enumerate(pictures)), str(folder))
    return str(folder)


def command(*arguments):
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def test_plan_measures_here_and_prints_a_table_or_json(tmp_path, tiny_base_dir):
    uri = dataset(tmp_path / "d", 40)
    given = (uri, "--model", tiny_base_dir, "--steps", 2, "--pictures", 3, "--pack", "auto", "--workers", "1,2,64")
    done = command(*given, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["rows"], told["parts"], told["measured"]["pictures"], told["measured"]["failed"]) == (40, 3, 16, 0)
    assert [each["workers"] for each in told["estimates"]] == [1, 2]  # three parts: nobody needs 64
    assert 0 < told["estimates"][1]["hours"] < told["estimates"][0]["hours"]
    assert told["bank_bytes"] == pytest.approx(40 * told["measured"]["bytes_per_picture"], abs=1)
    table = command(*given)
    assert "core-hours" in table.stdout and "3 parts of 16 pictures" in table.stdout


@pytest.mark.parametrize(("threads", "billed"), [((), 1), (("--threads", 3), 3)])
def test_packs_are_measured_whole_and_with_the_threads_that_are_billed(
    tmp_path, tiny_base_dir, monkeypatch, threads, billed
):
    """Five pictures asked for, four at a time: eight. More threads than a worker has would promise too much."""
    learned = []

    class Watched(estimate.Runner):
        def outcomes(self, examples, on_step=None, on_look=None, looked_at=True):
            learned.append((len(examples), torch.get_num_threads()))
            return super().outcomes(examples, on_step)

    monkeypatch.setattr(estimate, "Runner", Watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # as where nobody said anything
    try:
        uri = dataset(tmp_path / "d", 40)
        options = ("--model", tiny_base_dir, "--steps", 1, "--pictures", 5, "--pack", 4, "--workers", "1", "--json")
        told = json.loads(command(uri, *options, *threads).stdout.splitlines()[-1])
    finally:
        torch.set_num_threads(before)
    assert learned == [(1, billed), (4, billed), (4, billed)]
    assert (told["measured"]["pictures"], told["measured"]["pack"]) == (8, 4)
    (one,) = told["estimates"]
    assert one["device_hours"] == pytest.approx(billed * one["hours"])


def test_plan_refuses_what_cannot_be_measured(tmp_path, tiny_base_dir):
    uri = dataset(tmp_path / "d", 3, text="nothing is marked here")
    refused = command(uri, "--model", tiny_base_dir, "--steps", 1)
    assert isinstance(refused.exception, ConfigError) and "not one of 3 pictures" in str(refused.exception)
    assert "--workers 0" in str(command(uri, "--workers", "0").exception)
