"""Shared fixtures: a tiny base in Stable Diffusion's layout with random weights, and object stores; all offline."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import numpy as np
import pytest
import torch

from mcpl.models.catalogue import load
from mcpl.prompts import TEMPLATES


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small matrices on shared cores: two threads are slower than one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_base_dir(tmp_path_factory):
    """Directory of a random base: 16 px pictures, 8x8x4 latents, text width 16, two U-Net levels."""
    from diffusers import StableDiffusionPipeline

    from mcpl.scenes.grammar import vocabulary
    from mcpl.scenes.training.networks import (
        Shape,
        build_scheduler,
        build_text_encoder,
        build_unet,
        build_vae,
    )
    from mcpl.scenes.training.tokenizer import build_tokenizer

    torch.manual_seed(0)
    shape = Shape(pixels=16, width=16, text_heads=2, channels=(8, 16), heads=(2, 2), attend=(True, True))
    tokenizer = build_tokenizer(vocabulary(TEMPLATES))
    text_encoder = build_text_encoder(shape, len(tokenizer))
    with torch.no_grad():  # transformers' small initial scale would leave every word alike
        text_encoder.get_input_embeddings().weight.normal_(0, 1)
    pipeline = StableDiffusionPipeline(
        vae=build_vae(shape),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=build_unet(shape),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    directory = tmp_path_factory.mktemp("tiny-base")
    pipeline.save_pretrained(directory, safe_serialization=True)
    return directory


@pytest.fixture(scope="session")
def tiny(tiny_base_dir):
    """The tiny base in float64: equalities can be asked to 1e-9."""
    return load(str(tiny_base_dir), precision="float64", device="cpu")


@pytest.fixture
def passes(tiny, monkeypatch):
    """Grows by the rows of every U-Net call while a test runs; `sum(passes)` is the cost."""
    rows, original = [], tiny.predict

    def counting(noisy, *rest):
        rows.append(len(noisy))
        return original(noisy, *rest)

    monkeypatch.setattr(tiny, "predict", counting)
    return rows


@pytest.fixture(scope="session")
def pixels():
    """Deterministic smooth pictures, [n, 3, 16, 16] in -1..1."""

    def make(n: int) -> torch.Tensor:
        rng = np.random.default_rng(0)
        coarse = torch.tensor(rng.uniform(-1, 1, (n, 3, 4, 4)))
        return torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")

    return make


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory):
    """kind ('sd1', 'sd2', 'sdxl' ...) -> directory of a tiny base of that kind, built once."""
    import tiny_bases

    made = {}

    def directory(kind: str):
        if kind not in made:
            made[kind] = tiny_bases.save(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return directory


@pytest.fixture(scope="session")
def s3_endpoint():
    """A simulated S3 server on a free loopback port: quick, but its conditional writes are not atomic."""
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed: pip install -e '.[dev]'")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory) -> Path:
    """An empty tracking database to copy: making one takes seconds."""
    from mcpl.tracking.server import connect

    path = tmp_path_factory.mktemp("migrated") / "mlflow.db"
    connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def server(tmp_path, migrated):
    """`mlflow server` on SQLite."""
    from tests.mlflow_server import running

    shutil.copyfile(migrated, tmp_path / "server.db")
    with running(tmp_path / "server", f"sqlite:///{tmp_path}/server.db") as server:
        yield server


@pytest.fixture(scope="session")
def ceph():
    """A real S3 server, installed where it is missing; skipped with the reason where it cannot be had."""
    from tests.ceph import Unavailable, running

    with tempfile.TemporaryDirectory(prefix="c") as folder:
        try:
            node = running(Path(folder))
        except Unavailable as reason:
            pytest.skip(f"no Ceph: {reason}")
        yield node
        node.stop()


def fresh_bucket(endpoint: str, monkeypatch) -> str:
    """s3://... of a new bucket on that server, which the AWS settings now point at."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def bucket(s3_endpoint, monkeypatch) -> str:
    """A bucket on the simulated server."""
    return fresh_bucket(s3_endpoint, monkeypatch)


@pytest.fixture
def ceph_bucket(ceph, monkeypatch) -> str:
    """A bucket on Ceph."""
    return fresh_bucket(ceph.url, monkeypatch)


@pytest.fixture
def faulty(bucket, s3_endpoint, monkeypatch):
    """Make a proxy before the bucket's server that does these faults to its PUTs, and a store that goes through it."""
    from mcpl.data import storage
    from tests.faulty import Faulty

    made = []

    def make(*plan, probed=True, seconds=20.0, **how):
        proxy = Faulty(s3_endpoint, plan, **how)
        made.append(proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        if probed:
            storage._conditional[(proxy.url, bucket.removeprefix("s3://"))] = True
        return storage.open_store(bucket, retry_seconds=seconds), proxy

    yield make
    for proxy in made:
        proxy.close()
