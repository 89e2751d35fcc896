"""The arithmetic of the speed benchmarks, worked by hand, and the peer that ours is compared with."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks import textual_inversion
from benchmarks.jobs import endless, scene_jobs
from benchmarks.packing import ratios
from benchmarks.peer import Cost, longest
from benchmarks.processes import at_once
from benchmarks.roofline import Operations
from benchmarks.steps_to_quality import compared, marks


def test_operations_are_two_for_each_multiplication_and_addition():
    q = torch.randn(2, 3, 5, 8, requires_grad=True)
    k = torch.randn(2, 3, 7, 8, requires_grad=True)
    image, kernel = torch.randn(1, 4, 6, 6), torch.randn(9, 4, 3, 3)
    with Operations() as seen:
        torch.randn(3, 4) @ torch.randn(4, 5)
    assert seen.total == 2 * 3 * 4 * 5
    with Operations() as seen:
        torch.nn.functional.conv2d(image, kernel, padding=1)
    assert seen.total == 2 * 36 * 9 * 4 * 9
    with Operations() as seen:
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, k)
    assert seen.total == 2 * (2 * 3) * (5 * 7 * 8) * 2  # scores and their mean of values
    with Operations() as seen:
        attended.sum().backward()
    assert seen.total == 2 * (2 * 3) * (5 * 7 * 8) * 4  # four gradients; scores made again count for nothing


def test_packing_ratios():
    rates = {  # pictures x steps per second
        "1 worker, 1 thread": {1: 5.0, 8: 8.0},
        "1 worker, default threads": {1: 4.0, 8: 6.0},
        "2 workers, 1 thread": {1: 10.0, 8: 15.0},
    }
    found = ratios(rates, start=20.0, steps=200, pictures=60)
    assert found["ratio"] == 1.5 and found["ratio_default"] == 3.75
    # separate: two at once, 20 s and 200 steps at 5 a second each; packs: 20 s once, then 60 x 200 / 15 s
    assert found["ratio_started"] == pytest.approx((60 / 820) / (2 / 60), abs=1e-3)


def test_the_busiest_worker_is_waited_for():
    """50 pictures in packs of 8 on two workers: three rounds of both, and a last pack of two."""
    assert (longest(50, 2), longest(16, 2), longest(17, 2), longest(8, 2)) == (26, 8, 9, 8)


def test_timed_jobs_keep_the_threads_that_they_were_given():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        scene_jobs(endless("paper"), 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_pictures_per_hour_of_the_peer():
    cost = Cost(start_s=8.0, step_s=0.2, at_once=2)
    assert cost.pictures_per_hour(200) == 150.0  # two of 48 s at once
    assert cost.pictures_per_hour(200, start=False) == 180.0
    assert cost.pictures_per_hour(200, runs=2) == 75.0


class Told:
    """Shares at each mark, without learning anything."""

    def __init__(self, name, known, passes_a_step):
        self.name, self.known = name, known
        self.passes = {step: passes_a_step * step for step in known}

    def __call__(self, steps):
        return self.known[steps]

    def first_at(self, goal, steps):
        return next((step for step in steps if self.known[step] >= goal), None)


def test_steps_to_quality_says_who_reached_what():
    assert marks(80) == [0, 10, 20, 40, 80]
    peer = Told("the peer", {0: 0.0, 10: 0.0, 20: 0.1, 40: 0.3, 80: 0.5}, 8)
    quick, slow = (Told("best", known, 4) for known in ({0: 0.1, 10: 0.46, 20: 0.6}, {0: 0.1, 10: 0.2, 20: 0.3}))
    found = compared(peer, quick, 80, 20)
    assert (found["ratio"], found["ratio_passes"]) == (8.0, 16.0)
    assert "best never" in compared(peer, slow, 80, 20)["verdict"]
    assert compared(peer, slow, 80, 20)["ratio"] is None
    assert (
        "peer never" in compared(Told("the peer", {0: 0.2, 80: 0.1}, 8), Told("best", {20: 0.6}, 4), 80, 20)["verdict"]
    )


def test_the_peer_learns_its_word_and_the_releases_way_learns_the_same(tiny_base_dir, tmp_path, monkeypatch, capsys):
    """Explicit softmax over stored maps gives what fused attention gives; only the time differs."""
    Image.new("RGB", (20, 20), (200, 30, 30)).save(tmp_path / "picture.png")
    words = {}
    for way in ((), ("--release",)):
        monkeypatch.setattr(sys, "argv", [
            "peer", str(tmp_path / "picture.png"), "--word", "blob", "--initializer", "disc,ring", "--steps", "3",
            "--base", str(tiny_base_dir), "--out", str(tmp_path), "--keep", "0", "--lr", "0.01", *way,
        ])  # fmt: skip
        textual_inversion.main()
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert told["steps"] == 3 and told["step_s"] > 0
        words[way] = load_file(told["kept"]["3"])["blob"]
        moved = (words[way] - load_file(told["kept"]["0"])["blob"]).abs()
        assert 0.01 < moved.max() < 0.05
    torch.autograd.set_detect_anomaly(False)
    assert torch.allclose(*words.values(), atol=1e-4)


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="no such thing"):
        at_once([["-c", "raise SystemExit('no such thing')"]])
    (done,) = at_once([["-c", "import os; print('{\"threads\": ' + os.environ['OMP_NUM_THREADS'] + '}')"]], threads=1)
    assert done.told == {"threads": 1} and done.wall_s > 0
