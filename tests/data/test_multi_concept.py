"""The authors' layout: a tiny imitation with every oddity of the real one, and the real one where it is there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcpl.data.pictures import load_mask, load_picture
from mcpl.data.sources import SOURCES, Dataset, Rejected, detect, validate, write_dataset
from mcpl.types import Example


def picture(path: Path, seed: int = 0, size=(12, 8), format=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path, format, quality=95)


def cut_out(path: Path, left: int, right: int, binary=False, size=(12, 8), value=200) -> None:
    """An object (or mask) that fills the columns left to right, on a black that is not quite black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.full((size[1], size[0]), 0 if binary else 12, np.uint8)
    grey[:, left:right] = value
    Image.fromarray(grey if binary else np.stack([grey] * 3, 2)).save(path)


@pytest.fixture
def layout(tmp_path) -> Path:
    root = tmp_path / "Multi-Concept-Dataset"
    two = root / "natural_2_concepts" / "bananas_basket"
    picture(two / "unmasked/0/hoop.png", 1)
    picture(two / "unmasked/5/bread.png", 2)
    picture(two / "unmasked/6/fruit.png", 3)
    picture(two / "unmasked/4/fruit.png", 4)
    (two / "unmasked/9").mkdir()
    (two / "unmasked/9/again.png").write_bytes((two / "unmasked/0/hoop.png").read_bytes())
    cut_out(two / "masked_basket/0/hoop.png", 0, 4)
    cut_out(two / "masked_bananas/9/again.png", 6, 12)  # the doubled picture has the other concept's mask
    cut_out(two / "masked_bananas/7/bread.png", 6, 12)  # put in another sub-folder than its picture
    cut_out(two / "masked_bananas/6/fruit.png", 6, 12)
    cut_out(two / "masked_basket/3/nobody.png", 6, 12)
    picture(two / "grid_unmasked.jpg")
    picture(two / "stray.jpg")
    three = root / "natural_345_concepts" / "teddybear_skateboard_3"
    picture(three / "unmasked/group_0/result.png", 5)
    for word, left in (("teddybear", 0), ("skateboard", 4), ("taxi", 8)):
        cut_out(three / f"masked_{word}/group_0/result.png", left, left + 4)
    nested = three / "hamster_melon"
    picture(nested / "unmasked/beet.png", 6)
    cut_out(nested / "masked_hamster/beet.png", 0, 6, value=0)  # black all over
    cut_out(nested / "masked_melon/beet.png", 0, 6, size=(6, 4))
    real = root / "real_natural_concepts"
    name = "White chair, with a pink balloon tied to it"
    picture(real / "chair_balloon/unmasked" / f"{name}.jpg", 7)
    cut_out(real / "chair_balloon/masked_ballon" / f"{name}.png", 0, 2)
    cut_out(real / "chair_balloon/masked_ballon_binary" / f"{name}.png", 0, 6, binary=True)
    (real / "chair_balloon/masked_chair_binary").mkdir()
    (real / "chair_balloon/masked_chair_binary" / f"{name}.png").write_bytes(b"")
    cut_out(real / "chair_balloon/masked_chair" / f"{name}.png", 8, 12)
    picture(real / "toucan_branch/unmasked/a colorful toucan on a mossy branch.jpg", 8)
    cut_out(real / "toucan_branch/masked_toucan/a colorful toucan on a mossy branch.png", 0, 2)
    cut_out(real / "toucan_branch/masked_pot/a colorful toucan on a mossy branch.png", 4, 8)
    (real / ".DS_Store").write_bytes(b"\0" * 10)
    (root / "README.md").write_text("read me")
    return root


def read(root: Path) -> tuple[dict[str, Example], list[Rejected]]:
    items = list(SOURCES["multi-concept-dataset"](str(root)))
    return {i.id: i for i in items if isinstance(i, Example)}, [i for i in items if isinstance(i, Rejected)]


def columns(png: bytes) -> tuple[int, int]:
    inside = np.flatnonzero(load_mask(png).all(axis=0))
    return int(inside[0]), int(inside[-1]) + 1


def test_file_names_that_are_sentences_are_marked(layout):
    examples, _ = read(layout)
    texts = [example.text for example in examples.values()]
    assert "White <chair>, with a pink <balloon> tied to it" in texts
    assert "a colorful <toucan> on a mossy <branch>" in texts


def test_other_pictures_get_a_template_with_every_concept(layout):
    examples, _ = read(layout)
    assert examples["natural_2_concepts/bananas_basket/0/hoop"].text == "a photo of <bananas> and <basket>"
    three = examples["natural_345_concepts/teddybear_skateboard_3/group_0/result"]
    assert three.text == "a photo of <teddybear> and <skateboard> and <taxi>"


def test_masks_find_their_pictures(layout):
    examples, _ = read(layout)
    masks = {id.rpartition("/")[2]: {w: columns(m) for w, m in e.masks.items()} for id, e in examples.items()}
    assert masks["hoop"] == {"basket": (0, 4), "bananas": (6, 12)}
    assert masks["bread"] == {"bananas": (6, 12)}
    assert examples["natural_2_concepts/bananas_basket/6/fruit"].masks.keys() == {"bananas"}
    assert examples["natural_2_concepts/bananas_basket/4/fruit"].masks == {}
    assert masks["result"] == {"teddybear": (0, 4), "skateboard": (4, 8), "taxi": (8, 12)}
    assert masks["White chair, with a pink balloon tied to it"] == {"chair": (8, 12), "balloon": (0, 6)}
    assert masks["a colorful toucan on a mossy branch"] == {"toucan": (0, 2), "branch": (4, 8)}


def test_every_oddity_is_told_once_with_its_reason(layout):
    _, rejected = read(layout)
    told = sorted((r.kind, r.repaired) for r in rejected)
    assert told == sorted(
        [
            ("hidden file", False),
            ("not a picture", False),
            ("empty file", False),
            ("mosaic of other pictures", False),
            ("picture outside the unmasked and masked folders", False),
            ("the same bytes as another picture", False),
            ("mask of no picture", False),
            ("unusable mask", False),
            ("unusable mask", False),
            ("mask in another sub-folder than its picture", True),
            ("group inside another group", True),
            ("a concept that the group's name leaves out", True),
            ("misspelt mask folder", True),
            ("misnamed mask folder, the only one left for the only concept left", True),
        ]
    )
    assert {r.reason for r in rejected if r.kind == "unusable mask"} == {
        "unusable mask: black all over",
        "unusable mask: its size is 6 x 4, the picture's 12 x 8",
    }


def test_any_part_of_the_layout_opens_too(layout):
    group = layout / "natural_2_concepts" / "bananas_basket"
    examples, _ = read(group)
    assert set(examples) == {"0/hoop", "5/bread", "6/fruit", "4/fruit"}
    assert examples["0/hoop"].text == "a photo of <bananas> and <basket>"


def test_it_trains_as_a_dataset_and_imports_as_parquet(layout, tmp_path):
    assert detect(layout) == "multi-concept-dataset"
    dataset = Dataset.open(layout)
    dataset.check_ids()
    examples, _ = read(layout)
    assert dataset.count == len(examples) == 8
    assert [e for ref in dataset.shards(3) for e in dataset.read(ref)] == list(examples.values())
    report = write_dataset(SOURCES["multi-concept-dataset"](str(layout)), tmp_path / "out")
    assert report.rows == 8 and report.faults.lost == 9 and sum(report.faults.kinds.values()) == 14
    assert list(Dataset.open(tmp_path / "out").examples()) == list(examples.values())


def real_dataset() -> Path:
    beside = Path(__file__).resolve().parents[3] / "shared" / "data" / "multi-concept-dataset"
    return Path(os.environ.get("MCPL_MULTI_CONCEPT_DATASET") or beside)


@pytest.mark.skipif(not real_dataset().is_dir(), reason="the authors' dataset is not at MCPL_MULTI_CONCEPT_DATASET")
def test_the_real_dataset_is_read_with_all_its_sentences():
    real = real_dataset() / "real_natural_concepts"
    examples, rejected = read(real)
    texts = {example.text for example in examples.values()}
    assert "green <cactus> in orange <pot>" in texts and len(examples) == 8
    assert "a staked <paper> and a fountain pen and a black <ink> and sepia <photographs>" in texts
    for example in examples.values():
        size = load_picture(example.image).size
        assert {load_mask(png).shape[::-1] for png in example.masks.values()} == {size}
        assert len(example.masks) == example.text.count("<")
    assert sorted(r.kind for r in rejected) == [
        "empty file",
        "hidden file",
        "misnamed mask folder, the only one left for the only concept left",
        "misspelt mask folder",
    ]
    assert validate(real_dataset() / "natural_345_concepts" / "teddybear_skateboard_3").ok
