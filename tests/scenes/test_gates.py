"""The gates' command: its arithmetic, and one small measurement of the shipped base."""

import json
import math
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from benchmarks import base_gates, eye_check
from benchmarks.base_gates import FIRST, Sample, attention_iou, gate_scenes, pictures_gates, scenes_interval, wrong
from benchmarks.contact_sheet import Cell, contact_sheet
from benchmarks.drawing import draw, interval
from mcpl.errors import ConfigError
from mcpl.scenes.grammar import caption
from mcpl.scenes.judge import WEIGHTS, Reading, SeenObject, Verdict
from mcpl.scenes.scene import Scene

GOOD = Verdict(True, True, True, True, None, True)


def test_intervals_of_shares_are_wilsons():
    assert interval([1.0] * 10) == {"mean": 1.0, "low": 0.7225, "high": 1.0, "n": 10}  # 10 / (10 + 1.96^2)
    assert interval([False] * 10) == {"mean": 0.0, "low": 0.0, "high": 0.2775, "n": 10}
    # (0.5 + 0.0192 -+ 1.96 * sqrt(0.25 / 100 + 0.000096)) / 1.0384
    assert interval([0.0, 1.0] * 50) == {"mean": 0.5, "low": 0.4038, "high": 0.5962, "n": 100}
    assert math.isnan(interval([])["mean"])


def test_other_values_are_resampled_and_so_are_scenes():
    half = interval([0.25, 0.75] * 50)
    assert half["mean"] == 0.5 and 0.43 < half["low"] < 0.47 < 0.53 < half["high"] < 0.57
    # twins tell no more than one of them: as wide as 50 values, sqrt(2) wider than 100
    twins = scenes_interval([[0.25, 0.25], [0.75, 0.75]] * 25)
    single = interval([0.25, 0.75] * 25)
    assert twins == {**single, "n": 100} and twins["high"] - twins["low"] > 1.2 * (half["high"] - half["low"])
    assert scenes_interval([[0.3], [0.6, 0.9]])["mean"] == 0.6  # over objects, whatever scene they are of


def test_the_shipped_base_draws_offline_and_the_same_again():
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS.parent, dtype=torch.float32, local_files_only=True)
    scenes = gate_scenes(2)
    assert [len(scene.objects) for scene in scenes] == [1, 2]
    prompts = [caption(scene) for scene in scenes]
    pictures = draw(pipe, prompts, seed=0, steps=4, guidance=3.0)
    assert pictures.shape == (2, 32, 32, 3) and pictures.std() > 5
    assert (pictures == draw(pipe, prompts, seed=0, steps=4, guidance=3.0)).all()
    values = attention_iou(pipe, scenes)
    assert [len(scene) for scene in values] == [1, 2] and all(0 <= value <= 1 for scene in values for value in scene)


def _sample(scene: Scene, first: Verdict, second: Verdict, shape: str = "star") -> Sample:
    seen = Reading((SeenObject(shape, "red", "plain", 8.0, 8.0, 90.0, 0.9),))
    return Sample(scene, np.zeros((32, 32, 3), np.uint8), (seen, seen), (first, second))


def test_gates_by_hand():
    one, two = gate_scenes(2)
    bad = Verdict(False, True, True, True, False, False)
    gates = pictures_gates(
        [
            _sample(one, GOOD, GOOD),
            _sample(one, GOOD, replace(GOOD, texture=False, right=False)),
            _sample(two, replace(GOOD, relation=True), bad),
            _sample(two, bad, bad),
        ]
    )
    expected = {
        "shape": 0.75, "shape_1": 1.0, "shape_2": 0.5, "relation": 0.5, "all_right_1": 1.0, "all_right_2": 0.5,
        "second_shape": 0.5, "second_relation": 0.0, "second_all_right_1": 0.5, "second_all_right_2": 0.0,
        "agreement": 0.5, "agreement_1": 0.5, "agreement_2": 0.5,
    }  # fmt: skip
    assert {name: gates[name]["mean"] for name in expected} == expected
    assert gates["relation"]["n"] == 2 and gates["agreement"]["n"] == 4
    assert wrong(GOOD) == "right" and wrong(bad) == "wrong: shape, relation"
    assert wrong(replace(GOOD, right=False)) == "wrong: on other objects"


def test_the_command_leaves_a_trail(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(base_gates, "RENDERS", 6)
    monkeypatch.setattr(base_gates, "ROUND_TRIPS", 4)
    kept = {"--write": tmp_path / "gates.json", "--raw": tmp_path / "raw.parquet", "--page": tmp_path / "page"}
    options = [str(each) for pair in kept.items() for each in pair]
    monkeypatch.setattr(sys, "argv", ["base_gates", "--prompts", "4", "--steps", "2", *options])
    base_gates.main()
    gates = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert tuple(gates)[: len(FIRST)] == FIRST and {"judge_round_trip", "second_judge", "agreement"} < set(gates)
    assert gates["attention_iou"]["n"] == 6  # every object of every prompt
    assert all(set(gate) == {"mean", "low", "high", "n"} for gate in gates.values())
    written = json.loads(kept["--write"].read_text())
    assert written["gates"] == gates and written["hardware"]["torch"] == torch.__version__ and written["base_digest"]
    raw = pq.read_table(kept["--raw"]).to_pylist()
    assert len(raw) == 4 and len(Scene.from_json(raw[1]["truth"]).objects) == 2
    assert np.mean([row["judge"]["right"] for row in raw[::2]]) == gates["all_right_1"]["mean"]
    page = (kept["--page"] / "README.md").read_text()
    assert "| agreement |" in page and "sheet-01.png" in page and (kept["--page"] / "sheet-01.png").exists()


def test_a_contact_sheet_shows_the_pictures_and_marks_right_and_wrong_apart(tmp_path):
    red = np.zeros((32, 32, 3), np.uint8) + np.uint8([225, 30, 40])

    def drawn(*right: bool) -> np.ndarray:
        contact_sheet([Cell(red, "0. a", [(each, "") for each in right])], tmp_path / "sheet.png", columns=1, zoom=4)
        return np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))

    assert (drawn() == [225, 30, 40]).all(-1).sum() == 128 * 128
    inked = [(drawn(right) < 250).any(-1) for right in (True, False)]  # where there is ink, whatever its colour
    assert (inked[0] != inked[1]).sum() > 10


def test_the_eye_check_compares_a_persons_verdicts_of_the_same_pictures(tmp_path):
    form, base = tmp_path / "eye-check.csv", WEIGHTS.parent
    with pytest.raises(ConfigError, match="--sheets"):
        eye_check.read_form(form, base)
    head = [eye_check.origin(base, 2), "number,right,shapes"]
    form.write_text("\n".join([*head, "0,yes,star", "1,no,ring none"]))
    person = eye_check.read_form(form, base)
    assert person == [(True, Counter(["star"])), (False, Counter(["ring", "none"]))]
    bad = replace(GOOD, right=False)
    one, two = eye_check.eye_scenes(2)
    result = eye_check.compare(person, [_sample(one, GOOD, bad), _sample(two, bad, bad)])
    assert {name: value["mean"] for name, value in result.items()} == {
        "judge": 1.0, "judge_shapes": 0.5, "second_judge": 0.5, "second_judge_shapes": 0.5, "judges": 0.5, "right": 0.5,
    }  # fmt: skip
    form.write_text("\n".join([*head, "0,yes,star", "1,perhaps,ring"]))
    with pytest.raises(ConfigError, match="picture 1"):
        eye_check.read_form(form, base)
    form.write_text("\n".join([head[0].replace("seed", "other seed"), head[1], "0,yes,star", "1,no,ring"]))
    with pytest.raises(ConfigError, match="other pictures"):
        eye_check.read_form(form, base)
