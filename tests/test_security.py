"""What SECURITY.md promises and no other test holds."""

from __future__ import annotations

import ast
import base64
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mcpl.data.dataset import Dataset
from mcpl.data.pictures import load_picture
from mcpl.data.schema import DATASET
from mcpl.data.storage import open_store
from mcpl.errors import ExampleError
from mcpl.orchestration import fanout
from pipelines import train_all
from tests.faulty import Faulty
from tests.orchestration import stub
from tests.orchestration.scenario import Scenario

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*(ROOT / "mcpl").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")])


def calls(path: Path):
    """(dotted name, keyword -> source) of every call in a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


def test_no_module_executes_what_it_loads():
    for path in SOURCES:
        for name, given in calls(path):
            where = f"{path.relative_to(ROOT)}: {name}"
            assert name not in ("pickle.load", "pickle.loads", "joblib.load", "yaml.load", "yaml.unsafe_load"), where
            assert name not in ("eval", "exec", "os.system"), where
            assert name != "torch.load" or given.get("weights_only") == "True", where
            assert given.get("allow_pickle", "False") == "False", where
            assert given.get("trust_remote_code", "False") == "False" and given.get("shell", "False") == "False", where


def test_a_path_inside_a_dataset_is_never_opened_or_fetched(tmp_path):
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    places = [f"http://127.0.0.1:{server.server_port}/x.png", str(secret), secret.as_uri(), "s3://bucket/x.png"]
    rows = [
        {"image": {"bytes": None, "path": place}, "image_id": f"p{i}", "text": "a <bear>"}
        for i, place in enumerate(places)
    ]
    (tmp_path / "dataset").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, DATASET), tmp_path / "dataset" / "part-0.parquet")
    for example in Dataset.open(tmp_path / "dataset").examples():
        assert example.image == b""
        with pytest.raises(ExampleError):
            load_picture(example.image)
    server.shutdown()
    assert not asked


def test_the_endpoint_comes_from_the_environment_alone(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    store = open_store("s3://bucket/prefix?endpoint_override=elsewhere:80&scheme=http")
    assert store._s3().meta.endpoint_url == "http://127.0.0.1:9"


SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIASECRETSECRET",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIsecret",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEsecret",
}
PASSWORD = "correct-horse-secret"
BASIC = base64.b64encode(f"ann:{PASSWORD}".encode()).decode()


@pytest.fixture(params=["away", pytest.param("there", marks=[pytest.mark.integration, pytest.mark.slow])])
def tracking(request) -> Iterator[Faulty]:
    """A proxy before a tracking server, or before nothing; the server's database and log lie below `tmp_path`."""
    server = request.getfixturevalue("server") if request.param == "there" else None
    proxy = Faulty(server.uri if server else "127.0.0.1:9")
    proxy.away = server is None
    yield proxy
    proxy.close()


def test_secrets_are_used_and_neither_written_nor_said(
    tracking, bucket, s3_endpoint, tmp_path, monkeypatch, capfd, caplog
):
    """Data in a bucket that asks for keys, a tracker that asks for a password, and a look at all that is left."""
    caplog.set_level("DEBUG", logger="mcpl")
    monkeypatch.setattr("mcpl.tracking.mlflow.PATIENCE_SECONDS", 0.0)
    storage = Faulty(s3_endpoint)
    for name, value in (SECRETS | {"AWS_ENDPOINT_URL_S3": storage.url}).items():
        monkeypatch.setenv(name, value)
    scenario = Scenario(tmp_path)
    (dataset,) = scenario.pictures(8).iterdir()
    open_store(f"{bucket}/dataset").put(dataset.name, dataset.read_bytes())
    scenario.tell(fail=["p0003"])
    places = {
        "dataset": f"{bucket}/dataset",
        "tracking_uri": tracking.url.replace("://", f"://ann:{PASSWORD}@"),
    }
    config = scenario.config(f"{bucket}/bank").model_copy(update=places)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert train_all.train_all(config, inline=True, runner=stub.NAME) == 3  # too many failed

    assert SECRETS["AWS_ACCESS_KEY_ID"] in storage.headers["Authorization"]
    assert SECRETS["AWS_SESSION_TOKEN"] == storage.headers["X-Amz-Security-Token"]
    assert tracking.headers["Authorization"] == f"Basic {BASIC}"
    store = open_store(bucket)
    said = "".join(capfd.readouterr()) + caplog.text
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    written |= {entry.name: store.get(entry.name) for entry in store.list()}
    assert "8" in said and len(store.list("bank/part-")) == 2
    told = [data for data in written.values() if f"***@{tracking.url.removeprefix('http://')}".encode() in data]
    assert told, "the record of the run says where it is, without the password"
    for secret in (*SECRETS.values(), PASSWORD, BASIC):
        assert secret not in said
        assert not [place for place, data in written.items() if secret.encode() in data]
    storage.close()


def test_a_worker_is_sent_no_secret():
    """What travels to workers is the orders alone; where a tracker listens stays with the driver."""
    assert set(fanout.Orders.__dataclass_fields__) == {"dataset", "output", "recipe", "placement", "runner", "kind"}
    assert set(fanout.Kind.__dataclass_fields__) == {"opened", "encode"}  # functions, sent by name


def test_a_cluster_of_our_own_is_shut_to_others(monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "PYTHONPATH"):
        monkeypatch.setenv(name, "")  # so that they are put back
        monkeypatch.delenv(name)
    seen, switched = {}, []
    monkeypatch.setattr(fanout, "enable_token_auth_by_default", lambda: switched.append(True))
    monkeypatch.setattr(
        fanout.ray, "init", lambda **given: seen.update(given | {"token": os.environ["RAY_AUTH_TOKEN"]})
    )
    fanout._start_local("ERROR", verbose=False)
    assert switched and len(seen["token"]) == 64
    assert seen["include_dashboard"] is False
