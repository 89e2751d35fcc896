"""A published version draws pictures: in this process, and behind `mlflow models serve`."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mcpl.evaluation.sampling import generate
from mcpl.models.catalogue import load
from mcpl.prompts import parse
from mcpl.tracking import registry
from mcpl.tracking.server import resolve_uri
from mcpl.types import LearnedConcept
from tests.ports import free_port

PROMPT = "a <bear> left of a <board>"


@pytest.fixture(scope="module")
def base(tiny_base_dir):
    return load(str(tiny_base_dir), device="cpu")


@pytest.fixture
def rows(bank_row, base):
    """Two pictures' words for the tiny base; the second scored better."""

    def made(i):
        row = bank_row(i, base=base.facts.name, base_digest=base.facts.digest)
        rng = np.random.default_rng(i)
        words = tuple(
            LearnedConcept(
                w.concept, rng.normal(size=(1, base.facts.width)).astype(np.float32), w.attention, w.attention
            )
            for w in row.learned.concepts
        )
        return replace(row, learned=replace(row.learned, concepts=words), metrics={"right_object": i / 10})

    return [made(0), made(1)]


def drawn(base, row, seed) -> np.ndarray:
    vectors = {word.concept.slug: torch.from_numpy(word.vectors) for word in row.learned.concepts}
    return generate(base, parse(PROMPT), vectors, 1, seed)[0].numpy()


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_prompt_is_drawn_with_the_best_words_or_those_of_a_picture(home, rows, base, monkeypatch):
    monkeypatch.delenv("MCPL_BASE", raising=False)
    registry.publish(rows, "toys", bank="out", home=home)
    words = registry.load("toys", home=home)
    found = words.predict({"prompt": [PROMPT], "seed": [3]})
    assert found.image_ids[0] == {"bear": "p1", "board": "p1"}
    np.testing.assert_array_equal(pixels(found.png[0]), drawn(base, rows[1], 3))
    given = words.predict({"prompt": [PROMPT], "image_id": ["p0"], "seed": [3]})
    np.testing.assert_array_equal(pixels(given.png[0]), drawn(base, rows[0], 3))
    with pytest.raises(Exception, match="<cat> was never learned; there are bear, board"):
        words.predict({"prompt": ["a <cat>"]})


def test_another_base_is_refused_in_a_sentence(home, rows, base, base_dir, monkeypatch):
    registry.publish(rows, "toys", bank="out", home=home)
    monkeypatch.setenv("MCPL_BASE", str(base_dir("sd1")))
    with pytest.raises(Exception, match=f"but the words were learned with {base.facts.digest}: load the base"):
        registry.load("toys", home=home).predict({"prompt": [PROMPT]})
    assert list(registry.lookup("toys", image_id="p0", home=home).word) == ["bear", "board"], "look-ups need no base"


@pytest.fixture
def serve(home, tmp_path):
    """environment -> address of `mlflow models serve`, answering."""
    running = []

    def start(**environment: str) -> str:
        port = free_port()
        log = (tmp_path / f"serve-{port}.log").open("wb")
        root = str(Path(__file__).resolve().parents[2])
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # MLflow calls uvicorn by its name
        own = {"MLFLOW_TRACKING_URI": resolve_uri(None, home), "PYTHONPATH": root, "PATH": path}
        command = "models serve --model-uri models:/toys@champion --env-manager local --host 127.0.0.1 --workers 1"
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command.split(), "--port", str(port)],
            env=os.environ | own | environment, cwd=tmp_path,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        running.append(process)
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).close()
                return f"http://127.0.0.1:{port}/invocations"
            except OSError:
                told = Path(log.name).read_text()[-2000:]
                assert process.poll() is None and time.monotonic() < deadline, told
                time.sleep(0.3)

    yield start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ask(address: str, **query) -> list[dict]:
    body = json.dumps({"dataframe_records": [query]}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["predictions"]


@pytest.mark.integration
@pytest.mark.slow
def test_a_served_version_answers_over_http(home, rows, base, base_dir, serve):
    registry.publish(rows, "toys", bank="out", home=home)
    address = serve()
    (found,) = ask(address, prompt=PROMPT, seed=3)
    np.testing.assert_array_equal(pixels(base64.b64decode(found["png"])), drawn(base, rows[1], 3))
    assert [row["word"] for row in ask(address, image_id="p0")] == ["bear", "board"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(address, prompt="a <cat>")
    assert refused.value.code == 400 and "<cat> was never learned" in json.load(refused.value)["message"]

    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(serve(MCPL_BASE=str(base_dir("sd1"))), prompt=PROMPT)
    told = json.load(refused.value)["message"]
    assert refused.value.code == 400 and f"the words were learned with {base.facts.digest}" in told
