"""A bank scored by Ray's workers: the same scores as in one process, and what a killed command left is kept."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from mcpl.config import Placement, RunConfig
from mcpl.data.sources import scenes, write_dataset
from mcpl.data.storage import open_store
from mcpl.evaluation.sampling import Sampling
from mcpl.orchestration import fanout
from mcpl.orchestration.evaluating import evaluate_bank, scoring_of
from mcpl.recipes import adjust, load
from tests.orchestration import invented

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

PICTURES = 8


def test_two_workers_score_what_one_process_does_and_kill_9_loses_a_shard_at_most(
    tmp_path, tiny_base_dir, started, ray_cluster
):
    write_dataset(scenes(PICTURES, seed=5).examples(), str(tmp_path / "dataset"))
    recipe = adjust(load("plain"), base=str(tiny_base_dir))
    placement = Placement(shard_size=1, pack=4, device="cpu")
    banks = [str(tmp_path / name) for name in ("alone", "ray")]
    for bank in banks:
        config = RunConfig(dataset=str(tmp_path / "dataset"), output=bank, recipe=recipe, placement=placement)
        fanout.run(config, invented.NAME, inline=True)
    scoring = scoring_of(banks[0], str(tmp_path / "dataset"), samples=1, sampling=Sampling(steps=4))
    alone, _ = evaluate_bank(banks[0], scoring, placement, inline=True)

    command = [
        "pipelines/evaluate_all.py", "--bank", banks[1], "--dataset", tmp_path / "dataset", "--samples", 1,
        "--steps", 4, "--shard-size", 1, "--device", "cpu", "--inline",
    ]  # fmt: skip
    killed = started(*command)
    scores = open_store(f"{banks[1]}/_scores/{scoring.fingerprint}")
    while not scores.list("part-") and killed.poll() is None:
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    left = len(scores.list("part-"))
    found, summary = evaluate_bank(banks[1], scoring, placement.model_copy(update={"workers": 2}))
    assert summary.resumed == left > 0 and summary.new == PICTURES - left and summary.lost_workers == 0
    ours, theirs = ({row.id: row for row in each.rows()} for each in (found, alone))
    assert ours.keys() == theirs.keys() and len(ours) == PICTURES
    for id, row in ours.items():
        assert row.metrics == pytest.approx(theirs[id].metrics, abs=1e-6, nan_ok=True)
        for key, values in row.features.items():
            np.testing.assert_allclose(values, theirs[id].features[key], atol=1e-3)
