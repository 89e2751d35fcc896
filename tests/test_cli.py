"""What a person meets at the command line: one clear line for each mistake, nothing half-written, quick help."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mcpl.cli import COMMANDS, GROUPS, app, main
from mcpl.data.sources import write_dataset
from mcpl.errors import MCPLError
from mcpl.orchestration.single import _save_row
from mcpl.types import Example


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)
    return path


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """Exit code and everything printed, as the console script would give them."""
    monkeypatch.setattr(sys, "argv", ["mcpl", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
        raise SystemExit(0)
    printed = capsys.readouterr()
    return ended.value.code or 0, printed.out + printed.err


@pytest.fixture
def learn(monkeypatch, capsys, tiny_base_dir, tmp_path):
    def call(*arguments):
        return run(
            monkeypatch, capsys, "learn", *arguments,
            "--model", tiny_base_dir, "--steps", 3, "--samples", 1, "--out", tmp_path / "out",
        )  # fmt: skip

    return call


def test_learn_makes_one_folder_with_everything(learn, photo, tmp_path):
    code, printed = learn(photo, "a red <star> left of a blue <ring>")
    assert code == 0, printed
    out = tmp_path / "out"
    made = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert {
        "sheet.png",
        "metrics.json",
        "README.md",
        "concepts/star/learned_embeds.safetensors",
        "concepts/ring/learned_embeds.safetensors",
        "samples/star.png",
        "samples/ring.png",
        "samples/together.png",
        "bank/part-00000000.parquet",
    } <= made
    story = json.loads((out / "metrics.json").read_text())
    assert story["steps"] == 3 and story["metrics"]["fixed_noise_loss"] > 0
    assert not list(tmp_path.glob(".out-*")), "no scratch folder is left"


def test_pictures_in_a_row_do_not_run_together(tmp_path):
    _save_row(np.zeros((3, 16, 16, 3), np.uint8), tmp_path / "row.png", scale_to=32)
    columns = np.asarray(Image.open(tmp_path / "row.png"))[0, :, 0]
    assert len(columns) == 2 * (3 * 16 + 2)
    assert np.flatnonzero(columns).tolist() == [32, 33, 66, 67]


def test_learned_words_load_in_stock_diffusers(learn, photo, tmp_path, tiny_base_dir):
    import torch
    from diffusers import StableDiffusionPipeline

    learn(photo, "a red <star> left of a blue <ring>")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base_dir, safety_checker=None, local_files_only=True)
    pipeline.load_textual_inversion(str(tmp_path / "out/concepts/star/learned_embeds.safetensors"), token="<star>")
    row = pipeline.tokenizer.convert_tokens_to_ids("<star>")
    assert torch.isfinite(pipeline.text_encoder.get_input_embeddings().weight[row]).all()
    assert pipeline("a <star>", num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)


def test_words_travel_out_and_in(learn, photo, monkeypatch, capsys, tmp_path, tiny_base_dir):
    from mcpl.data import concepts

    learn(photo, "a red <star> left of a blue <ring>")
    bank, there, back = tmp_path / "out" / "bank", tmp_path / "there", tmp_path / "back"
    code, printed = run(monkeypatch, capsys, "concepts", "export", bank, "--out", there, "--word", "star")
    assert code == 0 and printed.strip() == str(there / "concepts" / "star" / "learned_embeds.safetensors")
    code, printed = run(
        monkeypatch,
        capsys,
        "concepts",
        "import",
        printed.strip(),
        "--base",
        tiny_base_dir,
        "--out",
        back,
        "--word",
        "sun",
    )
    assert code == 0 and "<sun>" in printed
    import torch

    assert torch.equal(concepts.load(back)["sun"], concepts.load(tmp_path / "out")["star"])
    code, printed = run(monkeypatch, capsys, "bank", "card", bank)
    assert code == 0 and printed.startswith("---\n") and "| `<ring>` |" in printed
    assert (there / "README.md").read_text().count("| `<") == 1, "the card of an export tells of its own words"


def test_a_word_of_another_base_is_one_line(monkeypatch, capsys, tmp_path, tiny_base_dir):
    import torch
    from safetensors.torch import save_file

    save_file({"emb_params": torch.ones(1, 1024)}, tmp_path / "toy.safetensors")
    code, printed = run(
        monkeypatch,
        capsys,
        "concepts",
        "import",
        tmp_path / "toy.safetensors",
        "--base",
        "sd15",
        "--out",
        tmp_path / "x",
    )
    assert code == 1 and printed.startswith("mcpl: ") and len(printed.splitlines()) == 1
    assert "1024 wide is one of Stable Diffusion 2.x, but --base sd15 has words 768 wide" in printed


@pytest.mark.parametrize(
    ("make", "sentence", "told"),
    [
        (None, "a <star>", "no such picture"),
        (b"text, no picture", "a <star>", "picture"),
        (b"", "a <star>", ""),
        ("good", "", "empty sentence"),
        ("good", "a red star", "no placeholder"),
        ("good", "a <star> and a <star>", "stands twice"),
        ("good", "a <star> " + "and a red disc " * 12, "tokens"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(learn, photo, tmp_path, make, sentence, told):
    if make is None:
        photo = tmp_path / "absent.png"
    elif isinstance(make, bytes):
        photo.write_bytes(make)
    code, printed = learn(photo, sentence)
    assert code == 1
    lines = [line for line in printed.splitlines() if line.startswith("mcpl: ")]
    assert len(lines) == 1 and told in lines[0]
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out-*"))


def test_a_mistake_found_late_leaves_no_folder_above_either(monkeypatch, capsys, photo, tmp_path, tiny_base_dir):
    long = "a <star> " + "and a red disc " * 12
    out = tmp_path / "learned" / "photo"
    code, printed = run(monkeypatch, capsys, "learn", photo, long, "--model", tiny_base_dir, "--out", out)
    assert code == 1 and "tokens" in printed and printed.count("\n") == 1, printed
    assert not out.parent.exists()
    code, printed = run(monkeypatch, capsys, "learn", photo, "a <star>", "--out", photo / "below")
    assert code == 1 and "nothing can be written" in printed


def test_a_folder_in_use_is_not_touched(learn, photo, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    code, printed = learn(photo, "a <star>")
    assert code == 1 and "not empty" in printed
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_wrong_base_says_what_to_do(monkeypatch, capsys, photo, tmp_path):
    code, printed = run(monkeypatch, capsys, "learn", photo, "a <star>", "--model", tmp_path / "nowhere")
    assert code == 1 and "neither a directory" in printed
    (tmp_path / "empty").mkdir()
    code, printed = run(monkeypatch, capsys, "learn", photo, "a <star>", "--model", tmp_path / "empty")
    assert code == 1 and "model_index.json" in printed


def test_explain_shows_roles_tokens_and_initialisers(monkeypatch, capsys, tiny_base_dir):
    code, printed = run(
        monkeypatch, capsys, "explain", "a red <moon> above a blue <ring:disc>", "--model", tiny_base_dir
    )
    assert code == 0
    for told in ("red", "adjective", "moon", "placeholder", "disc", "2 words to learn"):
        assert told in printed


def test_a_dataset_is_looked_at_before_it_is_learned(monkeypatch, capsys, photo, tmp_path, tiny_base_dir):
    captions = {"a": "a red star", "b": "a <star> " + "and a red disc " * 12}
    rows = [Example(id, photo.read_bytes(), text) for id, text in captions.items()]
    write_dataset(rows, tmp_path / "plain")
    (tmp_path / "nouns.txt").write_text("star\n")
    code, printed = run(monkeypatch, capsys, "dataset", "mark", tmp_path / "plain", "--nouns", tmp_path / "nouns.txt")
    assert code == 0 and "2 of 2 rows" in printed and str(tmp_path / "plain") in printed.replace("\n", "")
    look = ("dataset", "validate", tmp_path / "plain", "--words", "list:star")
    code, printed = run(monkeypatch, capsys, *look)
    assert code == 0 and "tokens of scenes-v1" in printed, "the shipped base counts, and limits nothing"
    code, printed = run(monkeypatch, capsys, *look, "--model", tiny_base_dir)
    assert code == 1 and "sentence too long (first: b)" in printed and "bad        b: sentence too long: 5" in printed
    assert "bad        b" not in run(monkeypatch, capsys, *look, "--model", tiny_base_dir, "--bad", 0)[1]


def test_a_dataset_is_previewed_as_one_page(monkeypatch, capsys, photo, tmp_path):
    rows = [Example("a", photo.read_bytes(), "a red <star>"), Example("b", b"junk", "a [b] <i>")]
    write_dataset(rows, tmp_path / "set")
    page = tmp_path / "pages" / "page.html"
    code, printed = run(monkeypatch, capsys, "dataset", "preview", tmp_path / "set", "--out", page, "-n", 5)
    assert code == 0 and printed.replace("\n", "") == str(page)
    html = page.read_text()
    assert html.count("<article") == 2 and html.count("<img") == 1 and "not a picture: its format is not known" in html
    assert "&lt;star&gt;" in html and "<i>" not in html and list(page.parent.iterdir()) == [page]
    code, printed = run(monkeypatch, capsys, "dataset", "preview", tmp_path / "none", "--out", page)
    assert code == 1 and printed.startswith("mcpl: nothing is at ")


def test_what_was_learned_is_shown_and_becomes_a_page(learn, monkeypatch, capsys, photo, tmp_path):
    text = "a red <star> left of a blue <ring>"
    learn(photo, text)
    bank = tmp_path / "out"
    look = ("show", photo, text, "--bank", bank, "--timesteps", 2, "--device", "cpu", "--out", tmp_path / "shown")
    code, printed = run(monkeypatch, capsys, *look)
    assert code == 0 and "<ring>" in printed and "sheet.png" in printed
    made = {path.relative_to(tmp_path / "shown").as_posix() for path in (tmp_path / "shown").rglob("*.*")}
    assert {
        "sheet.png",
        "words.webp",
        "overlays/2-star.png",
        "masks/4-ring.png",
        "segmentation.png",
        "maps.npz",
    } <= made
    code, printed = run(monkeypatch, capsys, "show", photo, "a <moon>", "--bank", bank, "--out", tmp_path / "none")
    assert code == 1 and "<moon>" in printed and not (tmp_path / "none").exists()

    write_dataset([Example(photo.stem, photo.read_bytes(), text)], tmp_path / "dataset")
    told = ("--dataset", tmp_path / "dataset", "--out", tmp_path / "page", "--samples", 1, "--device", "cpu")
    code, printed = run(monkeypatch, capsys, "report", bank / "bank", *told)
    assert code == 0 and "1 pictures, 2 words" in printed and "index.html" in printed
    assert len(list((tmp_path / "page" / "samples").iterdir())) == 3  # each word alone, and together


def test_every_command_has_help():
    runner = CliRunner()
    for command in (*(each.__name__ for each in COMMANDS), *GROUPS):
        result = runner.invoke(app, [command, "--help"])
        assert result.exit_code == 0 and "Usage" in result.output


def test_import_and_help_wait_for_no_heavy_library():
    code = (
        "import sys, mcpl, mcpl.cli; "
        "heavy = {'torch', 'diffusers', 'transformers', 'ray', 'mlflow', 'pandas'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_four_errors_share_one_root():
    from mcpl import errors

    four = (errors.ConfigError, errors.ExampleError, errors.PackTooLarge, errors.BankMismatch)
    assert all(issubclass(error, MCPLError) for error in four)


def test_learn_takes_several_pictures_that_share_words(learn, photo, tmp_path, monkeypatch, capsys):
    """MCPL-diverse by hand: one set of words, a sheet for each picture, and either picture finds them."""
    other = tmp_path / "elsewhere" / "photo.png"
    other.parent.mkdir()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (24, 20, 3), dtype=np.uint8)).save(other)
    told = ("a red <star> above a <box>", "a <ring> below a <star>")
    code, printed = learn(photo, told[0], other, told[1])
    assert code == 0, printed
    out = tmp_path / "out"
    assert {path.parent.name for path in out.glob("concepts/*/*.safetensors")} == {"star", "box", "ring"}
    story = json.loads((out / "metrics.json").read_text())
    assert [(one["text"], one["words"]) for one in story["pictures"]] == [
        (told[0], ["star", "box"]),
        (told[1], ["star", "ring"]),
    ]
    assert {one["id"] for one in story["pictures"]} == {"photo-1", "photo-2"}, "files of one name are told apart"
    sheet = Image.open(out / "sheet.png")
    code, printed = run(monkeypatch, capsys, "bank", "search", "ring", "--bank", out / "bank", "--id", "photo-2")
    assert code == 0 and "no picture taught" not in printed and "ring" in printed, printed
    code, printed = run(monkeypatch, capsys, "bank", "info", out / "bank")
    assert "1 of these are groups" in printed
    assert sheet.height > sheet.width / 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["other.png"], "'other.png' stands alone"),
        (["other.png", "a <ring>"], "other.png: no such picture"),
        (["PHOTO", "no mark"], "no placeholder"),
        (["PHOTO", "a <ring> " + "and a red disc " * 12], "photo-2: "),
    ],
)
def test_a_further_picture_that_cannot_be_used_is_refused_in_one_line(learn, photo, tmp_path, more, said):
    code, printed = learn(photo, "a <star>", *(photo if word == "PHOTO" else word for word in more))
    assert code == 1 and said in " ".join(printed.split()) and not (tmp_path / "out").exists()
