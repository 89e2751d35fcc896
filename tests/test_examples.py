"""The examples run from top to bottom, and leave what they promise."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
LEFT = {
    "learn_one_picture": ("sheet.png", "metrics.json", "concepts", "samples"),
    "show_words": ("sheet.png", "words.webp", "segmentation.png", "maps.npz"),
    "bank_as_a_page": ("page/index.html", "bank/part-00000000.parquet"),
    "generate_and_edit": ("grid.png", "picture-0.png", "original.png", "edited.png", "mask.png", "sheet.png"),
}


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EXAMPLE_STEPS", "2")
    monkeypatch.setenv("EXAMPLE_OUT", str(tmp_path / "out"))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out
    for name in LEFT[path.stem]:
        assert (tmp_path / "out" / name).exists()


def test_examples_open_as_notebooks():
    """Percent format: every file starts with a Markdown cell that has a title, and holds code."""
    for path in EXAMPLES.glob("*.py"):
        first, *cells = path.read_text().split("# %%")[1:]
        assert first.startswith(" [markdown]\n# # ") and any(cell.startswith("\n") for cell in cells), path
