"""`python pipelines/publish.py` and `mcpl publish`: a bank on disk becomes a version; a mistake is one line."""

import importlib.util
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mcpl.cli import app as mcpl
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


@pytest.mark.parametrize("command", ["pipelines/publish.py", "mcpl publish"])
def test_the_alias_moves_only_to_better_words(publish, home, bank_row, command):
    """The second bank's assignment is worse than the first one's, the third's better."""
    import torch

    app, words = (mcpl, ["publish"]) if command == "mcpl publish" else (publish.app, [])
    ended = []
    for index in (1, 0, 2):
        part = home / f"bank-{index}" / part_name(0)
        part.parent.mkdir()
        part.write_bytes(encode([bank_row(index, tensor=torch.tensor)]))
        guarded = ["--name", "toys", "--better-on", " assignment,"]
        ended.append(CliRunner().invoke(app, [*words, str(part.parent), *guarded]))
    assert [done.exit_code for done in ended] == [0, 5, 0], [done.output for done in ended]
    assert "1 stays @champion: assignment 0 against 0.1" in ended[1].stderr and not ended[1].stdout
    assert [found.aliases for found in registry.versions("toys", home=home)] == [("champion",), (), ()]


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
