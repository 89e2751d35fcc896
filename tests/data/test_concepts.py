"""From a bank to files and back; other programs' files into our layout; the card that goes with them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mcpl.data import concepts
from mcpl.data.bank import Bank, encode, part_name
from mcpl.data.card import card
from mcpl.data.storage import open_store
from mcpl.errors import ConfigError

from .test_bank import failed_row, learned_row


def bank_of(folder, *rows) -> Bank:
    open_store(folder).put(part_name(0), encode(rows))
    return Bank.open(folder)


@pytest.fixture
def two(tmp_path) -> Bank:
    """Two pictures with <bear>, one with <board>, one that failed."""
    return bank_of(
        tmp_path / "bank",
        learned_row("a", width=768),
        failed_row("b"),
        learned_row("../c", ("bear",), width=768, vectors=1, seed=5),
    )


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_one_picture_lies_right_in_the_folder_with_its_lineage(two, tmp_path):
    out = tmp_path / "out"
    written = concepts.export(two, out, ids=["a"])
    assert files(out) == {f"concepts/{slug}/learned_embeds.safetensors" for slug in ("bear", "board")} | {"README.md"}
    with safe_open(written[0], "np") as file:
        assert list(file.keys()) == ["<bear>"]
        np.testing.assert_array_equal(file.get_tensor("<bear>"), two.row("a").learned.concepts[0].vectors.numpy())
        header = file.metadata()
    assert header["format"] == "pt" and header["modelspec.sai_model_spec"] == "1.0.1"
    assert header["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert header["modelspec.trigger_phrase"] == "<bear>" and header["modelspec.title"] == "<bear> of a"
    assert header["mcpl.seed"] == "7" and header["mcpl.base_digest"] == "d" * 16 and header["mcpl.steps"] == "25"


def test_several_pictures_get_a_folder_each(two, tmp_path):
    concepts.export(two, tmp_path / "out")
    words = {"a/concepts/bear", "a/concepts/board", "%2E.%2Fc/concepts/bear"}
    assert files(tmp_path / "out") == {f"{word}/learned_embeds.safetensors" for word in words} | {"README.md"}


def test_words_and_pictures_choose(two, tmp_path):
    concepts.export(two, tmp_path / "one", words=["<Board>"])
    assert files(tmp_path / "one") == {"concepts/board/learned_embeds.safetensors", "README.md"}
    assert len(concepts.export(two, tmp_path / "two", words=["b*"])) == 3
    assert len(concepts.export(two, tmp_path / "three", ids=["a"], words=["bear"])) == 1


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"words": ["lion"]}, r"no such word \(lion\); its words: bear, board"),
        ({"ids": ["zebra"]}, "no picture 'zebra'; it has a, b"),
        ({"ids": ["b"]}, "no such word"),
        ({"file_format": "ckpt"}, "safetensors, a1111"),
    ],
)
def test_nothing_to_export_is_one_sentence_and_no_file(two, tmp_path, asked, told):
    with pytest.raises(ConfigError, match=told):
        concepts.export(two, tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_a_pickle_is_written_only_when_it_is_asked_for(two, tmp_path):
    from mcpl.data.embeddings import read

    [path] = concepts.export(two, tmp_path, ["a"], ["bear"], file_format="a1111")
    assert path.endswith("concepts/bear/bear.pt")
    [found] = read(path)
    assert found.word == "bear" and found.layout == "A1111"
    np.testing.assert_array_equal(found.vectors, two.row("a").learned.concepts[0].vectors.numpy())


def test_export_and_import_lose_nothing(two, tmp_path):
    concepts.export(two, tmp_path / "out", ids=["a"])
    paths = sorted((tmp_path / "out").rglob("*.safetensors"))
    told = concepts.import_files(paths, tmp_path / "in", "sd15", 768)
    assert [(one.slug, one.vectors, one.width, one.layout) for one in told] == [
        ("bear", 2, 768, "diffusers"), ("board", 2, 768, "diffusers"),
    ]  # fmt: skip
    before, after = concepts.load(tmp_path / "out"), concepts.load(tmp_path / "in")
    assert list(after) == ["bear", "board"] and all(torch.equal(before[word], after[word]) for word in after)
    with safe_open(told[0].path, "pt") as file:
        header = file.metadata()
    assert header["mcpl.picture_sha256"] == "1" * 64, "the lineage travels along"
    assert header["mcpl.imported_from"] == "learned_embeds.safetensors" and len(header["mcpl.imported_sha256"]) == 64


def test_sd_xl_words_lie_side_by_side(tmp_path):
    row = learned_row("a", ("bear",), width=2048)
    concepts.export(bank_of(tmp_path / "bank", row), tmp_path / "out")
    assert torch.equal(concepts.load(tmp_path / "out")["bear"], row.learned.concepts[0].vectors)


def foreign(folder, name="toy", key="emb_params", width=768):
    path = folder / f"{name}.safetensors"
    save_file({key: torch.ones(2, width)}, path)
    return path


def test_another_bases_word_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"768 wide is one of Stable Diffusion 1\.x, but --base sdxl has words 2048"):
        concepts.import_files([foreign(tmp_path)], tmp_path / "in", "sdxl", 2048)
    with pytest.raises(ConfigError, match=r"a word 100 wide fits neither --base sd15 \(768\) nor any known base"):
        concepts.import_files([foreign(tmp_path, width=100)], tmp_path / "in", "sd15", 768)
    assert not (tmp_path / "in").exists()


def test_a_local_base_of_any_width_takes_its_own_words(tmp_path):
    [told] = concepts.import_files([foreign(tmp_path, width=96)], tmp_path / "in", "scenes-v1", 96)
    assert told.fits == "scenes-v1" and concepts.load(tmp_path / "in")["toy"].shape == (2, 96)


def test_one_bad_file_and_nothing_is_written(tmp_path):
    good, bad = foreign(tmp_path), tmp_path / "bad.pt"
    bad.write_bytes(b"PK\x03\x04")
    with pytest.raises(ConfigError, match=r"bad\.pt"):
        concepts.import_files([good, bad], tmp_path / "in", "sd15", 768)
    assert not (tmp_path / "in").exists()


def test_names_can_be_given_and_must_be_placeholders_of_their_own(tmp_path):
    path, out = foreign(tmp_path, "my toy_2"), tmp_path / "in"
    with pytest.raises(ConfigError, match=r"'my toy_2' cannot be a placeholder: .*such as <my-toy>"):
        concepts.import_files([path], out, "sd15", 768)
    with pytest.raises(ConfigError, match="2 names are given with --word, but the files hold 1"):
        concepts.import_files([path], out, "sd15", 768, ["a", "b"])
    with pytest.raises(ConfigError, match="<toy> would stand twice"):
        concepts.import_files([path, path], out, "sd15", 768, ["toy", "Toy"])
    [told] = concepts.import_files([path], out, "sd15", 768, ["Toy"])
    assert told.slug == "toy"
    with pytest.raises(ConfigError, match="<toy> would stand twice"):
        concepts.import_files([path], out, "sd15", 768, ["toy"])


def test_a_folder_without_words_says_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no concepts/\*/learned_embeds"):
        concepts.load(tmp_path)


def test_the_card_says_what_whence_how_well_and_how(two, tmp_path):
    concepts.export(two, tmp_path / "out", ids=["a"])
    text = (tmp_path / "out" / "README.md").read_text()
    for told in (
        "# 2 learned words", "`scenes-v1`, digest `dddddddddddddddd`", "`paper`, fingerprint `ffffffffffffffff`",
        "| `<bear>` | a | a brown &lt;bear> | 2 | 768 |", "concepts/board/learned_embeds.safetensors",
        "| iou | 0.250 | 0.500 |", "load_textual_inversion", 'token="<bear>"',
    ):  # fmt: skip
        assert told in text, told
    assert str(tmp_path) not in text


def test_a_cards_code_is_python_for_every_kind_of_base(tmp_path):
    bases = {"sd15": 768, "sdxl": 2048, "scenes-v1": 96, "someone/else": 1024}
    for base, width in bases.items():
        row = learned_row("a", ("bear",), width=width)
        row = dataclasses.replace(row, provenance=dataclasses.replace(row.provenance, base=base))
        text = card([row])
        code = text.split("```python\n")[1].split("```")[0]
        compile(code, "card", "exec")
        hub = {"sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5", "someone/else": "someone/else"}
        assert hub.get(base, "") in code
        if base == "sd15":
            assert "base_model: stable-diffusion-v1-5/" in text and "451f4fe16113bff5a5d2269ed5ad43b0592e9a14" in code
        if base == "scenes-v1":
            assert "base_model" not in text and 'CATALOGUE["scenes-v1"].source' in code


def test_a_card_keeps_its_columns_whatever_a_sentence_holds():
    row = dataclasses.replace(learned_row("x|y"), text="a | <bear>\n| b")
    line = next(line for line in card([row]).splitlines() if line.startswith("| `<bear>`"))
    assert line.replace("\\|", "").count("|") == 7


def test_a_bank_of_nothing_but_failures_has_a_card():
    assert "No word was learned." in card([failed_row()])


def test_a_card_loads_a_hub_model_at_its_revision():
    from mcpl.data.card import _loading

    assert 'from_pretrained("someone/a-base", revision="1a2b3c")' in _loading("X", "someone/a-base@1a2b3c")[-1]
