"""`mcpl generate` and `mcpl edit` as a person meets them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from mcpl.cli import main
from mcpl.generation.saving import told_in


@pytest.fixture
def call(monkeypatch, capsys):
    """Exit code and everything printed, as the console script would give them."""

    def run(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mcpl", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
            raise SystemExit(0)
        printed = capsys.readouterr()
        return ended.value.code or 0, " ".join((printed.out + printed.err).split())

    return run


@pytest.fixture
def learned(call, monkeypatch, tmp_path, tiny_base_dir):
    """A folder in which photo.png was learned, as `mcpl learn photo.png` leaves it."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)).save("photo.png")
    code, printed = call(
        "learn", "photo.png", "a red <bear> left of a blue <board>", "--model", tiny_base_dir, "--steps", 1,
        "--samples", 0,
    )  # fmt: skip
    assert code == 0, printed
    return tmp_path


def test_learn_then_generate_then_edit(call, learned):
    sentence = "a green <bear> above a <board>"
    code, printed = call("generate", sentence, "learned/photo", "-n", 2, "--seed", 7, "--steps", 2)
    assert code == 0 and "grid.png" in printed, printed
    told = told_in("generated/picture-8.png")
    assert told["prompt"] == sentence and told["seed"] == 8 and told["scheduler"] == "ddim"
    assert [word["word"] for word in told["words"]] == ["<bear>", "<board>"]
    assert str(learned) not in str(told)
    code, printed = call(
        "edit", "photo.png", "a red <bear> left of a blue <board>", "--replace", "<bear>=star", "--weight", "star=1.5",
        "--steps", 2,
    )  # fmt: skip
    assert code == 0 and "the words are those of learned/photo" in printed, printed
    assert {p.name for p in (learned / "edited").iterdir()} == {"original.png", "edited.png", "mask.png", "sheet.png"}
    assert told_in("edited/edited.png")["prompt"] == "a red star left of a blue <board>"


def test_mistakes_are_one_line(call, learned):
    photo, sentence = "photo.png", "a <bear> left of a <board>"
    (learned / "text.png").write_text("no picture")
    for arguments, told in [
        (("generate", "a <bear>"), "<bear> is a learned word: say where it is with --bank"),
        (("generate", "a <moon>", "learned/photo"), "<moon> was learned in none of learned/photo"),
        (("generate", "a <bear>", "--bank", "nowhere"), "nowhere"),
        (("generate", "a <bear>", "learned/photo", "--model", "scenes-v1"), "belongs to base"),
        (("edit", photo, sentence), "say what changes"),
        (("edit", photo, sentence, "--replace", "<bear>"), "write it as OLD=NEW"),
        (("edit", photo, sentence, "--replace", "<cat>=<bear>"), "'<cat>' does not stand in"),
        (("edit", photo, sentence, "--weight", "<bear>=9"), "a factor from 0 to 4"),
        (("edit", "absent.png", sentence, "--refine", "a <bear>"), "absent.png: no such picture"),
        (("edit", "text.png", sentence, "learned/photo", "--refine", "a <bear>"), "text.png: not a picture"),
        (("edit", "text.png", sentence, "learned/photo", "--refine", "a <bear>", "--model", "none"), "not a picture"),
    ]:
        code, printed = call(*arguments)
        assert code == 1 and told in printed and printed.count("mcpl: ") == 1, (arguments, printed)
    assert not (learned / "generated").exists() and not (learned / "edited").exists()
