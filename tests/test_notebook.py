"""mcpl in a notebook: quick to import, takes what is at hand, and what comes back displays itself."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import mcpl
from mcpl.data.pictures import picture_png
from mcpl.errors import BankMismatch, ConfigError, ExampleError

TEXT = "a red <star> left of a blue <ring>"


def picture(width=40, height=24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture(scope="module")
def learned(tiny_base_dir):
    return mcpl.learn(picture(), TEXT, base=str(tiny_base_dir), steps=2, samples=1, device="cpu", progress=False)


def test_import_waits_for_nothing():
    code = (
        "import sys, time; t = time.perf_counter(); import mcpl; t = time.perf_counter() - t;"
        "assert not {'torch', 'numpy'} & set(sys.modules); print(t);"
        "assert {'learn', 'show', 'generate', 'edit'} <= set(dir(mcpl))"
    )
    told = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(told) < 0.1
    with pytest.raises(AttributeError, match="lern"):
        mcpl.lern  # noqa: B018


def test_a_picture_may_come_as_anything_and_learns_the_same(learned, tiny_base_dir, tmp_path):
    image = picture()
    image.save(tmp_path / "picture.png")
    for given in (np.asarray(image), picture_png(image), tmp_path / "picture.png"):
        again = mcpl.learn(given, TEXT, base=str(tiny_base_dir), steps=2, samples=0, device="cpu", progress=False)
        assert all(torch.equal(again.vectors[slug], rows) for slug, rows in learned.vectors.items())
    with pytest.raises(ConfigError, match="no such picture"):
        mcpl.learn(tmp_path / "nothing.png", TEXT)
    with pytest.raises(ExampleError, match="placeholder"):
        mcpl.learn(image, "a star", base=str(tiny_base_dir), steps=1)


def test_what_was_learned_displays_itself_and_can_be_kept(learned, tmp_path):
    assert Image.open(io.BytesIO(learned._repr_png_())).size == learned.sheet.size
    page = learned._repr_html_()
    assert "data:image/png;base64," in page and "<td>fixed noise loss</td>" in page and "<star>" not in page
    folder = learned.save(tmp_path / "kept")
    assert (folder / "concepts" / "star" / "learned_embeds.safetensors").is_file()
    with pytest.raises(ConfigError, match="not an empty folder"):
        learned.save(folder)


@pytest.mark.parametrize("source", ["learned", "vectors", "folder", "files"])
def test_words_may_come_from_anywhere_and_look_the_same(learned, source, tmp_path):
    folder = learned.save(tmp_path / "kept")
    words = {
        "learned": learned,
        "vectors": {slug: rows.numpy() for slug, rows in learned.vectors.items()},
        "folder": folder,
        "files": sorted(folder.glob("concepts/*/*.safetensors")),
    }[source]
    base = learned.runner.model.facts.name
    expected = mcpl.show(picture(), TEXT, learned, device="cpu")
    looks = mcpl.show(picture(), TEXT, words, base=base, device="cpu")
    np.testing.assert_array_equal(looks.maps, expected.maps)


def test_looks_are_of_the_pictures_own_size_and_go_into_a_folder(learned, tmp_path):
    looks = mcpl.show(picture(), TEXT, learned, timesteps=3, device="cpu")
    assert looks.words == ("red", "<star>", "blue", "<ring>")
    assert looks.maps.shape == (4, 8, 8) and looks.maps.max() == 1
    assert looks.masks.shape == (4, 24, 40) and looks.masks.dtype == bool and looks.masks.any(axis=(1, 2)).all()
    assert not looks.masks[:, :, :8].any() and not looks.masks[:, :, 32:].any(), "the base saw the square in the middle"
    assert set(np.unique(looks.labels)) <= {0, 1, 2, 255} and (looks.labels[:, :8] == 255).all()
    assert (looks.labels[:, 8:32] != 255).all()
    assert [looks.words[w] for w in looks.segmented] == ["<star>", "<ring>"]

    folder = looks.save(tmp_path / "shown")
    segmentation = Image.open(folder / "segmentation.png")
    assert segmentation.mode == "P" and (np.asarray(segmentation) == looks.labels).all()
    legend = json.loads((folder / "labels.json").read_text())
    assert [(word["word"], word["label"]) for word in legend["words"]] == [
        ("red", None), ("<star>", 1), ("blue", None), ("<ring>", 2),
    ]  # fmt: skip
    for word, mask in zip(legend["words"], looks.masks, strict=True):
        assert (np.asarray(Image.open(folder / word["mask"])) == 255 * mask).all()
    frames = Image.open(folder / "words.webp")
    assert frames.n_frames == 3 and frames.info["loop"] == 0
    with np.load(folder / "maps.npz") as arrays:
        assert arrays["by_time"].shape == (3, 4, 8, 8) and arrays["words"].tolist() == list(looks.words)
        np.testing.assert_array_equal(arrays["labels"], looks.labels)
    assert Image.open(io.BytesIO(looks._repr_png_())).width > 200 and "image/webp" in looks._repr_html_()


def test_ordinary_words_and_chosen_words(learned, tiny_base_dir):
    plain = mcpl.show(picture(), "a red star left of a ring", base=str(tiny_base_dir), timesteps=2, device="cpu")
    assert plain.words == ("red", "star", "ring") and [plain.words[w] for w in plain.segmented] == ["star", "ring"]
    chosen = mcpl.show(picture(), TEXT, learned, show=["star", "left"], segment=["left"], timesteps=2, device="cpu")
    assert chosen.words == ("<star>", "left") and chosen.segmented == (1,)
    with pytest.raises(ConfigError, match="'moon' does not stand"):
        mcpl.show(picture(), TEXT, learned, show=["moon"])


def test_wrong_words_are_told_in_one_line(learned, base_dir):
    with pytest.raises(ConfigError, match="<moon>"):
        mcpl.show(picture(), "a <moon>", learned)
    with pytest.raises(ConfigError, match="--bank"):
        mcpl.show(picture(), TEXT)
    with pytest.raises(BankMismatch, match="<star>"):
        mcpl.show(picture(), TEXT, learned, base=str(base_dir("sd1")), device="cpu")


def test_pictures_are_drawn_and_edited_and_display_themselves(learned, tmp_path):
    drawn = mcpl.generate("a <star> on a <ring>", learned, n=3, seed=5, steps=2, device="cpu")
    assert len(drawn.pictures) == 3 and drawn.made.seeds == (5, 6, 7)
    [alone] = mcpl.generate("a <star> on a <ring>", learned, n=1, seed=6, steps=2, device="cpu").pictures
    assert np.abs(np.asarray(alone).astype(int) - np.asarray(drawn.pictures[1])).max() <= 1
    edited = mcpl.edit(picture(), TEXT, learned, replace={"<star>": "ring"}, steps=2, device="cpu")
    assert edited.made.prompt == "a red ring left of a blue <ring>" and edited.made.seeds == ()
    for made in (drawn, edited):
        assert Image.open(io.BytesIO(made._repr_png_())).size == made.sheet.size
        assert (made.save(tmp_path) / ("sheet.png" if made is edited else "grid.png")).is_file()
    with pytest.raises(ConfigError, match="stepz"):
        mcpl.generate("a <star>", learned, stepz=3)
    with pytest.raises(ConfigError, match="say what changes"):
        mcpl.edit(picture(), TEXT, learned)


def test_several_pictures_are_learned_together(tiny_base_dir, tmp_path):
    also = [(picture(24, 24), "a <ring> above a <moon>")]
    learned = mcpl.learn(
        picture(), TEXT, also=also, base=str(tiny_base_dir), steps=2, samples=0, device="cpu", progress=False
    )
    assert list(learned.vectors) == ["star", "ring", "moon"]
    alone = mcpl.learn(picture(), TEXT, base=str(tiny_base_dir), steps=2, samples=0, device="cpu", progress=False)
    assert learned.sheet.height > alone.sheet.height
    assert (learned.save(tmp_path / "out") / "concepts/moon/learned_embeds.safetensors").is_file()
