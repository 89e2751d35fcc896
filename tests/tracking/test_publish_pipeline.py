"""`python pipelines/publish.py`: a bank on disk becomes a version; a mistake is one line."""

import importlib.util
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mcpl.data.bank import encode, part_name
from mcpl.tracking import registry

PAGE = Path(__file__).parents[2] / "pipelines" / "publish.py"


@pytest.fixture
def publish():
    spec = importlib.util.spec_from_file_location("publish_pipeline", PAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bank(home, bank_row):
    import torch

    rows = [bank_row(0, tensor=torch.tensor), bank_row(1, tensor=torch.tensor)]
    (home / part_name(0)).write_bytes(encode(rows))
    return home


def test_a_bank_on_disk_is_published_and_says_how_to_load_it(publish, bank):
    done = CliRunner().invoke(
        publish.app, [str(bank), "--name", "toys", "--tracking-uri", f"sqlite:///{bank}/mlflow.db"]
    )
    assert done.exit_code == 0, done.output
    told = dict(line.split(maxsplit=1) for line in done.output.splitlines())
    assert (told["name"], told["version"], told["alias"]) == ("toys", "1", "champion")
    assert 'load_model("models:/toys@champion")' in told["load"] and str(bank) in told["load"]
    assert list(registry.lookup("toys", image_id="p1", home=bank).word) == ["bear", "board"]


def test_a_mistake_is_one_line(publish, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["publish.py", str(tmp_path / "none"), "--name", "toys"])
    with pytest.raises(SystemExit) as ended:
        publish.run(publish.app, "publish")
    told = capsys.readouterr().err
    assert ended.value.code == 1
    assert told.count("\n") == 1 and "none" in told


def test_the_page_is_executable():
    assert PAGE.stat().st_mode & 0o111
    assert PAGE.read_text().startswith("#!/usr/bin/env python")
