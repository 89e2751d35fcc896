"""The benchmarks of editing and composition: what they ask and forgive, and that they go on where they stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import composition, editing, gradients, learned_words
from mcpl.config import Placement, Recipe
from mcpl.data.sources import scenes
from mcpl.learning.settings import AttentionMask
from mcpl.objectives.objective import Attention, Contrastive, Denoising
from mcpl.orchestration.job import Runner
from mcpl.scenes import benchmark
from mcpl.scenes.world import HELD_OUT


@pytest.fixture(scope="module")
def rows():
    return {name: list(benchmark.rows(name, "dev"))[:10] for name in ("named-2", "unnamed-2")}


def test_every_edit_asks_for_one_change_that_the_base_can_know(rows):
    for own in rows.values():
        for task in editing.tasks(own):
            before = task.row.scene.objects
            for way in editing.WAYS:
                after = task.asked(way).objects
                changed = [i for i in range(2) if before[i] != after[i]]
                assert changed == [task.target]
                old, new = before[task.target], after[task.target]
                traits = {t for t in ("shape", "colour", "texture") if getattr(old, t) != getattr(new, t)}
                assert traits == {{"replaced": "shape", "recoloured": "colour", "refined": "texture"}[way]}
                assert (new.shape, new.colour) not in HELD_OUT
                assert len({item.shape for item in after}) == 2
            assert task.shape in [item.shape for item in task.donor.scene.objects]


def test_learned_words_and_true_names_say_the_same_edit(rows):
    for task in editing.tasks(rows["named-2"]):
        for way in editing.WAYS:
            learned, true = (task.change(way, told) for told in ("learned", "true"))
            bare = learned.after.text.replace("<", "").replace(">", "")
            assert bare == true.after.text and learned.changed == true.changed


def test_what_changes_inside_the_box_is_forgiven_and_outside_it_is_not():
    before = np.full((32, 32, 3), 100, np.uint8)
    inside, outside = before.copy(), before.copy()
    box = (slice(4, 12), slice(10, 20))
    inside[box] = 0
    assert editing.psnr_outside(before, inside, box) == float("inf")
    outside[31] = 110  # 32 of 1024 - 80 pixels off by 10: mean square 100 * 32 / 944
    assert editing.psnr_outside(before, outside, box) == pytest.approx(10 * np.log10(255**2 / (3200 / 944)))


def test_new_scenes_join_words_of_two_pictures(rows):
    for own in rows.values():
        scenes = composition.new_scenes(own, "dev")
        assert len(scenes) == len(own)
        shown = {row.id: {item.shape for item in row.scene.objects} for row in own}
        for first, sources, scene in scenes:
            assert first in sources.values() and len(set(sources.values())) == 2
            assert {item.shape for item in scene.objects} == sources.keys()
            assert all(shape in shown[picture] for shape, picture in sources.items())
            bank = {id: {slug: f"{slug} of {id}" for slug in slugs} for id, slugs in shown.items()}
            assert composition.words_of(sources, bank) == {s: f"{s} of {id}" for s, id in sources.items()}


def test_learned_words_are_held_against_true_names_of_the_same_pictures():
    told = [
        {"set": "named-2", "id": "a", "told": "learned", "success": 1},
        {"set": "named-2", "id": "a", "told": "learned", "success": 0},
        {"set": "named-2", "id": "b", "told": "learned", "success": 0},
        {"set": "named-2", "id": "a", "told": "true", "success": 1},
        {"set": "named-2", "id": "b", "told": "true", "success": 0},
        {"set": "unnamed-2", "id": "c", "told": "learned", "success": 1},
    ]
    found = learned_words.over_ceiling(told, ["named-2"])
    assert (found["success"], found["ceiling"], found["of_ceiling"]) == (0.25, 0.5, 0.5)
    assert learned_words.over_ceiling(told, ["unnamed-2"])["of_ceiling"] == 2.0, "its named twin's ceiling"
    assert learned_words.with_ceilings(["unnamed-2"]) == ["unnamed-2", "named-2"]


@pytest.mark.slow
@pytest.mark.parametrize("module", [composition, editing])
def test_it_ends_in_one_line_of_json_and_does_nothing_twice(module, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(editing, "TRIES", 1)
    options = ["--quick", "--split", "dev", "--steps", "1", "--out", str(tmp_path)]
    options += ["--set", "steps=2"] if module is editing else []
    monkeypatch.setitem(learned_words.QUICK, "steps", 1)
    monkeypatch.setattr(sys, "argv", ["x", *options])
    module.main()
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"success", "ceiling", "of_ceiling", "success_interval", "commit", "hardware"} <= first.keys()
    raw = tmp_path / "raw-dev.jsonl"
    lines, parts = raw.read_text(), len(list(tmp_path.glob("words-*/part-*")))
    raw.write_text(lines + '\n{"cut": ')  # killed while it wrote
    module.main()
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again == first and len(list(tmp_path.glob("words-*/part-*"))) == parts
    assert raw.read_text().startswith(lines) and '"set"' not in raw.read_text()[len(lines) :]
    assert (Path(tmp_path) / "sheet.png").stat().st_size > 0


def test_a_term_pulls_by_its_weight_and_noise_is_no_pull(tiny):
    def found(weight: float, **changes) -> dict[str, torch.Tensor]:
        terms = {"denoising": Denoising(), "contrastive": Contrastive(weight=weight), "attention": Attention()}
        recipe = Recipe(terms=terms, precision="float64", **changes)
        job = Runner(recipe, Placement(pack=1, device="cpu"), tiny).prepare(next(iter(scenes(1, seed=1).examples())))
        return gradients.gradients(tiny, job, job.initial, recipe, draws=2)

    light, heavy = found(1e-3), found(1e-1)
    assert torch.allclose(heavy["contrastive"], 100 * light["contrastive"], rtol=1e-6)
    assert torch.equal(heavy["denoising"], light["denoising"]) and light["attention"].abs().sum() > 0
    whole = found(1e-3, attention_mask=AttentionMask(on_loss=False))
    cut = found(1e-3, attention_mask=AttentionMask(threshold=0.999))
    assert not torch.allclose(cut["denoising"], whole["denoising"])
    let_through = found(1e-3, attention_mask=AttentionMask(threshold=0.999, outside=1.0))
    assert torch.allclose(let_through["denoising"], whole["denoising"], rtol=1e-6)
    assert gradients.pulls(light)["denoising"][gradients.OF_A_BATCH] == pytest.approx(1)
    ratios = [gradients.pulls(own)["contrastive"][gradients.OF_A_BATCH] for own in (light, heavy)]
    assert ratios[1] == pytest.approx(100 * ratios[0], rel=1e-6)

    noise = torch.randn(400, 50, generator=torch.Generator().manual_seed(0))
    assert gradients.steady(noise) < 0.3 < 6 < float(noise.norm(dim=1).mean())
    assert gradients.steady(noise + 2) == pytest.approx(2 * 50**0.5, rel=0.02)
