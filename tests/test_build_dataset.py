"""The command that builds datasets, run as a person runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mcpl.data.sources import Dataset

SCRIPT = Path(__file__).resolve().parents[1] / "pipelines" / "build_dataset.py"


def build(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_scenes_are_written_and_told_in_one_line(tmp_path):
    done = build("scenes", "--n", 5, "--out", tmp_path / "set", "--row-group", 2)
    assert done.returncode == 0 and done.stdout.startswith("5 rows in 1 file(s), ") and done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    dataset = Dataset.open(tmp_path / "set")
    assert dataset.count == 5 and len(dataset.shards(64)) == 3
    again = build("scenes", "--n", 5, "--out", tmp_path / "set", "--row-group", 2)
    assert again.returncode == 0 and again.stdout == done.stdout


def test_a_folder_is_written_and_its_junk_told(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (4, 4)).save(photos / "one.png")
    (photos / "two.png").write_bytes((photos / "one.png").read_bytes()[:30])
    lines = [{"file_name": name, "text": "a <cat>"} for name in ("one.png", "two.png")]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (photos / ".DS_Store").write_bytes(b"x")
    done = build("folder", photos, "--out", tmp_path / "set")
    assert done.returncode == 0 and "1 rows" in done.stdout and "2 rejected" in done.stdout
    assert "hidden file" in done.stderr and "two.png" in done.stderr
    assert build("folder", photos, "--out", tmp_path / "set", "--strict").returncode == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("folder", "absent"),
        ("parquet", "not.parquet"),
        ("scenes", "--objects", "3", "--shapes", "foo"),
    ],
)
def test_wrong_input_is_one_clear_line_and_writes_nothing(tmp_path, arguments):
    (tmp_path / "not.parquet").write_text("hello")
    arguments = [str(tmp_path / a) if a in ("absent", "not.parquet") else a for a in arguments]
    done = build(*arguments, "--out", tmp_path / "set")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("build_dataset: ") and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "set").exists()


def test_the_script_is_executable():
    assert os.access(SCRIPT, os.X_OK) and SCRIPT.read_text().startswith("#!/usr/bin/env python\n")
