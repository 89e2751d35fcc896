"""Passes until a recipe is as good as another ever is: what is counted, and that measuring changes nothing."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from benchmarks import passes as module
from benchmarks import recipes as recipes_of
from mcpl.config import Placement
from mcpl.data.sources import scenes
from mcpl.errors import ConfigError
from mcpl.learning.learner import Learner
from mcpl.orchestration.job import Runner, ends
from mcpl.recipes import adjust, load
from mcpl.types import Pack


def test_rows_of_steps_and_of_looks_for_masks_are_paid_and_no_others():
    plain, paper = load("plain"), load("paper")
    assert [module.paid(plain, step) for step in (0, 5, 100)] == [0, 20, 400]
    paid = [module.paid(paper, step) for step in (0, 5, 25, 30, 100)]
    assert paid == [0, 30, 110, 140, 440], "the look at 25 serves the steps after it; four come before the last step"


def row(passes, losses, recipe="best", id="x"):
    return {"recipe": recipe, "id": id, "seed": 0, "curve_passes": passes, "curve_losses": losses}


def test_ratios_by_hand():
    paper = row([0, 30, 50], [0.3, 0.1, 0.2], "paper")
    own = row([0, 3, 20], [0.5, 0.1, 0.05])
    assert module.ratios(own, paper) == {"to_least": pytest.approx(0.1), "of_all": pytest.approx(0.06)}
    assert module.ratios(row([0, 3], [0.5, 0.2]), paper) == {"to_least": math.inf, "of_all": math.inf}
    worse = row([0, 30, 50], [0.1, 0.2, 0.2], "paper", "z")
    assert module.ratios(own | {"id": "z"}, worse) == {"to_least": None, "of_all": pytest.approx(0.06)}
    never = row([0, 3], [0.5, math.nan], id="y")
    told = module.summary([paper, own, paper | {"id": "y"}, never, worse, own | {"id": "z"}], "best")
    assert told["paper_least_at_start"] == pytest.approx(1 / 3)
    assert told["to_least"] == [0.1, 0.1, None] and told["to_least_quarter"][0] == 0.5
    assert told["of_all"] == [0.06, 0.06, None] and told["of_all_quarter"][0] == pytest.approx(2 / 3, abs=1e-4)


def test_looks_that_only_measure_change_no_word(tiny):
    recipe = adjust(load("paper"), steps=4, probe_every=2, probe_timesteps=2)
    runner = Runner(recipe, Placement(pack=2, samples=0, device="cpu"), tiny)
    pack = Pack(tuple(runner.prepare(example) for example in scenes(2, seed=5)))
    watched = Learner(tiny, pack, recipe)
    losses = module.curve(watched, 1)
    learned = Learner(tiny, pack, recipe).run()
    for job, alone, curve, looked_at in zip(pack.jobs, learned, losses, watched.results(), strict=True):
        assert torch.equal(ends(job, alone), ends(job, looked_at))
        assert not torch.equal(ends(job, looked_at), job.initial)
        assert [point.fixed_noise_loss for point in alone.curve] == pytest.approx(curve[::2], rel=1e-6)


def test_a_last_step_that_is_not_looked_at_is_refused():
    with pytest.raises(ConfigError, match="plain: give looks that divide its 100 steps"):
        module.check({"plain": load("plain")}, 7)


def test_it_goes_on_where_it_stopped(monkeypatch, tmp_path, tiny_base_dir):
    monkeypatch.setattr(recipes_of, "examples", lambda name, split, count, skip: scenes(count, seed=5))
    learned, original = [], module.curve
    monkeypatch.setattr(
        module, "curve", lambda learner, every: learned.extend(learner.pack.jobs) or original(learner, every)
    )
    recipes = module.variants(["plain", "paper"], [], base=str(tiny_base_dir), steps=2, probe_timesteps=2)

    def run(recipes, pictures):
        return module.run(
            recipes, ["s"], "dev", pictures, 1, Placement(pack=2, samples=0, device="cpu"), tmp_path / "raw",
            learn=partial(module.looked_at, every=2),
        )  # fmt: skip

    first, second = run(recipes, 1), run(recipes, 2)
    assert len(learned) == 4 and second[0] == first[0] and len(second) == 4
    renamed = run({"simple": recipes["plain"]}, 2)
    assert len(learned) == 4 and {row["recipe"] for row in renamed} == {"simple"}
    assert module.summary(second, "plain")["of_all"]
