"""Threads are chosen by what a base's own forward pass takes."""

from __future__ import annotations

import pytest
import torch

from mcpl.orchestration import threads


@pytest.mark.parametrize(
    ("alone", "together", "chosen"),
    [
        (0.02, 0.001, 1),  # small: more are not even tried
        (2.0, 1.0, 2),
        (2.0, 1.9, 1),  # they hardly help
        (2.0, 6.0, 1),  # a shared machine, where threads wait for each other
    ],
)
def test_more_threads_are_taken_where_they_are_measured_to_pay(tiny, monkeypatch, alone, together, chosen):
    before, tried = torch.get_num_threads(), []

    def seconds(work, clock):
        work()
        tried.append(torch.get_num_threads())
        return alone if tried[-1] == 1 else together

    monkeypatch.setattr(threads, "_seconds", seconds)
    assert threads.choose(tiny, most=2) == chosen
    assert torch.get_num_threads() == before
    assert (2 in tried) == (alone > threads.SMALL_S)


def test_the_small_base_learns_with_one_thread(tiny):
    assert threads.choose(tiny, most=8) == 1
