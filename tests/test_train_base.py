"""Training the base: stopped and resumed equals uninterrupted; a hand-over goes on; the result loads as a pipeline."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from benchmarks import familiar
from mcpl.errors import ConfigError
from mcpl.models.catalogue import load
from mcpl.scenes.judge import WEIGHTS
from mcpl.scenes.scene import sample_scene
from mcpl.scenes.training.data import scene_and_caption
from mcpl.scenes.training.export import export, pipeline
from mcpl.scenes.training.job import Job, work
from mcpl.scenes.training.loop import BaseConfig, Trainer, train
from mcpl.scenes.training.muon import orthogonal
from mcpl.scenes.training.networks import Shape, build_scheduler, build_vae
from mcpl.scenes.training.reading import NOUNS, UNTOLD, _targets
from mcpl.scenes.world import COLOURS, GROUNDS, RELATIONS

TINY = Shape(width=16, text_layers=1, text_heads=2, channels=(8, 16), heads=(2, 2), attend=(True, False))
CONFIG = BaseConfig(shape=TINY, rows=4, reading_steps=2, warm_up=3)

OPTIONS = dict.fromkeys((*BaseConfig.model_fields, "resume", "until", "pixels", "channels"))
OPTIONS |= {"finish": False, "minutes": 1e9, "gpu": False}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in (*trainer.parameters, *trainer.average)])


def test_resumed_equals_uninterrupted(tmp_path):
    whole = Trainer(CONFIG)
    train(whole, tmp_path / "whole", until=16)
    train(Trainer(CONFIG), tmp_path / "cut", until=8)
    second = Trainer(CONFIG, fresh=False)
    second.load(tmp_path / "cut")
    train(second, tmp_path / "cut", until=16)
    assert second.cursor == whole.cursor == 16
    assert torch.equal(_weights(second), _weights(whole))
    assert len(list((tmp_path / "cut").glob("state-*.safetensors"))) == 2  # the older state is gone


def test_two_halves_of_a_batch_are_the_batch():
    """Data parallel: the workers' samples are disjoint, together they are what one worker sees."""
    from mcpl.scenes.training.data import batch

    trainer = Trainer(CONFIG)
    whole, ids = batch(0, range(4), trainer.tokenizer)
    halves = [batch(0, range(i, i + 2), trainer.tokenizer) for i in (0, 2)]
    assert torch.equal(whole, torch.cat([h[0] for h in halves])) and torch.equal(ids, torch.cat([h[1] for h in halves]))


def test_learning_rate_warms_up_holds_and_falls_only_when_asked():
    trainer = Trainer(CONFIG)
    paces = []
    for step in range(5):
        trainer.steps_since_start, trainer.cursor = step, 4 * step
        paces.append(trainer.pace())
    assert paces == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])
    trainer.config = CONFIG.model_copy(update={"decay_from": 8, "decay_samples": 8})
    trainer.cursor = 12
    assert trainer.pace() == pytest.approx(0.5)
    trainer.cursor = 16
    assert trainer.pace() == 0


def test_finishing_leaves_the_constant_phase_as_it_was(tmp_path):
    train(Trainer(CONFIG), tmp_path, until=8)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    job = Job.from_options({**OPTIONS, "out": tmp_path, "finish": True})
    assert job.config.decay_from == 8 and job.config.shape == TINY and job.folder == tmp_path / "finish"
    job = job.model_copy(update={"config": job.config.model_copy(update={"decay_samples": 8})})
    work(job, rank=0, world=1)
    assert json.loads((tmp_path / "finish" / "state.json").read_text())["cursor"] == 16
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_finishing_a_hand_over_starts_from_its_weights(tmp_path):
    trainer = Trainer(CONFIG)
    train(trainer, tmp_path / "run", until=8)
    trainer.hand_over(tmp_path / "hand")
    options = {**OPTIONS, "out": tmp_path / "new", "resume": tmp_path / "hand", "finish": True, "until": 8}
    work(Job.from_options(options), rank=0, world=1)
    finished = Trainer(CONFIG, fresh=False)
    finished.load(tmp_path / "new" / "finish")
    assert finished.cursor == 8 and torch.allclose(_weights(finished), _weights(trainer), atol=1e-3)
    assert Job.from_options({**options, "out": tmp_path / "run"}).source == tmp_path / "run"  # what OUT holds is first
    with pytest.raises(ConfigError, match="--finish: neither .*empty nor --resume holds"):
        Job.from_options({**options, "out": tmp_path / "empty", "resume": None})


def test_a_hand_over_goes_on_at_its_cursor_with_a_new_warm_up(tmp_path):
    trainer = Trainer(CONFIG)
    train(trainer, tmp_path / "run", until=8)
    trainer.hand_over(tmp_path / "hand")
    again = Trainer(CONFIG, fresh=False)
    again.load(tmp_path / "hand")
    assert (again.cursor, again.steps_since_start) == (8, 0)
    assert torch.allclose(_weights(again), _weights(trainer), atol=1e-3)
    again.step()


def test_reading_asks_each_noun_for_its_own_traits_and_the_second_for_the_side():
    trainer = Trainer(CONFIG, fresh=False)
    captions = [
        "a red ring above a blue striped thing",
        "a photo of a star",
        "a disc, a disc and a cross on a grey ground",
    ]
    ids = trainer.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    noun_ids = torch.tensor(trainer.tokenizer.convert_tokens_to_ids([f"{noun}</w>" for noun in NOUNS]))
    near, far = _targets(captions, ids, noun_ids)
    asked = [[tuple(at) for at in row.tolist() if at[0] != UNTOLD] for row in near]
    ring, thing, star = (NOUNS.index(noun) + 1 for noun in ("ring", "thing", "star"))
    red, blue, above = (
        1 + list(COLOURS).index("red"),
        1 + list(COLOURS).index("blue"),
        1 + list(RELATIONS).index("above"),
    )
    assert asked[0] == [(ring, red, 0, 0), (thing, blue, 1, above)]
    assert asked[1] == [(star, 0, 0, 0)] and all(at[3] == 0 for at in asked[2])
    assert far[:, -2].tolist() == [above, 0, 0] and far[2, -1] == 1 + list(GROUNDS).index("grey")


def test_shares_decide_how_many_objects_and_nothing_else():
    assert {len(scene_and_caption(0, i, (0.0, 1.0, 0.0))[0].objects) for i in range(20)} == {2}
    assert scene_and_caption(0, 5)[0] == sample_scene(np.random.default_rng([0, 5]))


def test_a_stop_file_ends_the_run_with_its_state_saved(tmp_path):
    (tmp_path / "stop").touch()
    train(Trainer(CONFIG), tmp_path)
    assert json.loads((tmp_path / "state.json").read_text())["cursor"] == 0


def test_orthogonal_agrees_with_the_singular_vectors():
    for size in ((12, 90), (30, 16), (16, 16)):
        matrix = torch.randn(size, generator=torch.Generator().manual_seed(0))
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        turned = left.T @ orthogonal(matrix) @ right.T
        assert (turned.diagonal() - 1).abs().max() < 0.45  # the quintic stops near 1, not at it
        assert (turned - turned.diagonal().diag()).abs().max() < 1e-3


def test_the_last_step_is_pure_noise_only_where_the_target_still_tells_something():
    assert build_scheduler().alphas_cumprod[-1] == 0
    assert build_scheduler("epsilon").alphas_cumprod[-1] > 0


def test_an_exported_base_loads_offline_and_draws(tmp_path):
    digest = export(pipeline(Trainer(CONFIG), build_vae(TINY)), tmp_path)
    assert json.loads((tmp_path / "digest.json").read_text())["sha256"] == digest
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a red star", num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (32, 32, 3)


@pytest.mark.slow
@pytest.mark.integration
def test_two_ray_workers_train_and_save_when_terminated(tmp_path):
    root = Path(__file__).resolve().parents[1]
    out_folder = os.path.relpath(tmp_path, root)  # a user's relative path; Ray's workers stand somewhere else
    command = [sys.executable, "pipelines/train_base.py", "unet", "--out", out_folder, "--workers", "2"]
    command += ["--channels", "8,16,16", "--rows", "4", "--reading-steps", "2"]
    log, pids = tmp_path / "log", tmp_path / "pids"
    with log.open("w") as out:
        run = subprocess.Popen(command, cwd=root, stdout=out, stderr=out)
        try:
            deadline = time.monotonic() + 240
            while run.poll() is None and time.monotonic() < deadline:
                if pids.exists() and len(pids.read_text().split()) == 2:
                    break
                time.sleep(0.5)
            time.sleep(5)
            run.terminate()
            assert run.wait(120) == 0, log.read_text()[-2000:]
        finally:
            run.kill()
    cursor = json.loads((tmp_path / "state.json").read_text())["cursor"]
    again = Job.from_options({**OPTIONS, "out": tmp_path})
    assert again.config.shape.channels == (8, 16, 16)  # a run goes on as it was begun
    (tmp_path / "stop").unlink()
    work(again.model_copy(update={"until": cursor + 4}), rank=0, world=1)
    assert json.loads((tmp_path / "state.json").read_text())["cursor"] == cursor + 4


def test_make_base_uses_what_it_made_and_ends_with_the_gates():
    """The judge learns to see through the new autoencoder, and the limits of the familiar are those of the new base."""
    make = shutil.which("make")
    if not make:
        pytest.skip("no make here")
    root = Path(__file__).resolve().parents[1]
    printed = subprocess.run(
        [make, "--no-print-directory", "-n", "base"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    lines = printed.replace("\\\n", " ").splitlines()
    [judge] = [line for line in lines if " judge " in line]
    assert "--vae runs/base/vae" in judge
    assert "benchmarks.familiar --base runs/base/scenes --write" in lines[-2]
    assert "benchmarks.base_gates --base runs/base/scenes" in lines[-1]


def test_a_judge_learns_from_the_autoencoder_that_is_told(tmp_path):
    build_vae(TINY).save_pretrained(tmp_path / "vae")
    saved, script = [], Path(__file__).resolve().parents[1] / "pipelines" / "train_base.py"
    for vae in ((), ("--vae", str(WEIGHTS.parent / "vae")), ("--vae", str(tmp_path / "vae"))):
        options = ["judge", "--out", str(tmp_path / "judge.safetensors"), "--steps", "2", *vae]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["train_base.py", *options])
            patch.setattr(sys, "path", [*sys.path])
            patch.setattr(os, "environ", dict(os.environ))
            runpy.run_path(str(script), run_name="__main__")
        saved.append((tmp_path / "judge.safetensors").read_bytes())
    assert saved[0] == saved[1] != saved[2]


def test_the_limits_of_the_familiar_are_those_of_the_base_that_is_told(tmp_path, monkeypatch, capsys):
    export(pipeline(Trainer(CONFIG), build_vae(TINY)), tmp_path)
    monkeypatch.setattr(sys, "argv", ["familiar", "--base", str(tmp_path), "--n", "2", "--write"])
    familiar.main()
    limits = json.loads(capsys.readouterr().out.splitlines()[-1])
    base = load(str(tmp_path), device="cpu")  # the new file is recorded, or this would refuse it
    assert base.facts.familiar == limits
    (tmp_path / "familiar.json").write_text("{}")
    with pytest.raises(ConfigError, match="familiar.json is not the file"):
        load(str(tmp_path), device="cpu")
