"""Many pictures in one curve: means of all, quartiles of a bounded sample."""

import dataclasses
import io

import numpy as np
import pyarrow.parquet as pq
import pytest

from mcpl.tracking import results
from mcpl.tracking.base import Run
from mcpl.tracking.results import Summary, logged_steps, quartiles
from mcpl.types import GroupPicture


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_quartiles_are_numpys(count):
    values = np.random.default_rng(count).normal(size=count)
    np.testing.assert_allclose(quartiles(values.tolist()), np.percentile(values, [25, 50, 75]))


def test_a_summary_stays_small_and_its_means_exact(monkeypatch, bank_row):
    monkeypatch.setattr(results, "QUARTILE_SAMPLE", 50)
    summary = Summary()
    for index in range(400):
        summary.add(bank_row(index))
    assert summary._sample.shape[1] == 50
    (step, numbers), *_ = summary.curves()
    assert (step, numbers["fixed_noise_loss/mean"]) == (0, pytest.approx(1 + 399 / 2))
    assert numbers["fixed_noise_loss/median"] == pytest.approx(200, abs=60)
    assert summary.bands()["fixed_noise_loss"][0] == (
        0,
        *(numbers[f"fixed_noise_loss/{q}"] for q in ("q25", "median", "q75")),
    )


def test_pictures_of_different_lengths_share_the_steps_that_they_have_in_common(bank_row):
    """Four steps give losses at 1 and 2 (values 3, 1) or, run twice as long, at 2 and 4 (values 4, 2)."""
    short, long = bank_row(0), bank_row(1)
    summary = Summary()
    for row, steps in ((short, 2), (long, 4)):
        summary.add(dataclasses.replace(row, learned=dataclasses.replace(row.learned, steps=steps)))
    losses = {step: numbers["loss/denoising/mean"] for step, numbers in summary.curves() if step in (1, 2, 4)}
    assert losses == {1: 3.0, 2: (1 + 4) / 2, 4: 2.0}


def test_what_could_not_be_measured_is_not_counted(bank_row):
    summary = Summary()
    summary.add(dataclasses.replace(bank_row(0), metrics={"assignment": float("nan"), "iou": 0.5}))
    summary.add(bank_row(3, status="failed"))
    assert summary.scores() == {"iou": {"mean": 0.5, "n": 1}}
    assert dict(summary.statuses) == {"learned": 1, "failed": 1}


def test_logged_steps_are_spread_evenly_to_the_last(bank_row):
    learned = dataclasses.replace(bank_row(0).learned, steps=200)
    assert logged_steps(learned, 4) == [50, 100, 150, 200]
    assert logged_steps(learned, 200) == list(range(1, 201))
    assert logged_steps(learned, 0) == []


def test_the_table_of_pictures_has_every_score_though_the_first_picture_failed(bank_row):
    kept = {}

    class Kept(Run):
        def artifact(self, source, name):
            kept[name] = source

    group = dataclasses.replace(bank_row(2), pictures=(GroupPicture("a", "a <bear>", "1" * 64, ("bear",)),))
    Kept().table(results.picture_rows([bank_row(0, status="failed"), bank_row(1), group]), "pictures")
    table = pq.read_table(io.BytesIO(kept["pictures.parquet"]))
    assert table["assignment"].to_pylist() == [None, 0.1, 0.2]
    assert table["pictures"].to_pylist() == [None, None, "a"]
