"""Files of every program that writes learned words are read, none of them is run, and ours say where they come from."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from mcpl.data.embeddings import a1111_file, read, safetensors_file, slug_of
from mcpl.errors import ConfigError


def vectors(n=2, width=768) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(n * width))


def release_file(path, words, old_torch=False) -> None:
    """As the paper's release saves: a ParameterDict of Parameters beside token ids."""
    table = nn.ParameterDict({word: nn.Parameter(v) for word, v in words.items()})
    if old_torch:  # PyTorch 1.10 knew neither `_keys` nor the newer hooks
        for name in [
            n for n in vars(table) if n == "_keys" or n.endswith(("_with_kwargs", "_always_called", "_hooks"))
        ]:
            del table.__dict__[name]
    tokens = {word: torch.tensor(1000 + i) for i, word in enumerate(words)}
    torch.save({"string_to_token": tokens, "string_to_param": table}, path)


@pytest.mark.parametrize("n", [1, 3])
def test_a_word_comes_back_from_our_own_file(tmp_path, n):
    for width, keys in ((768, ["<bear>"]), (1024, ["<bear>"]), (96, ["<bear>"]), (2048, ["clip_g", "clip_l"])):
        written = vectors(n, width)
        path = tmp_path / f"{width}.safetensors"
        path.write_bytes(safetensors_file("bear", written.numpy(), {"mcpl.base": "sd15", "mcpl.seed": "7", "x": ""}))
        with safe_open(path, "pt") as file:
            header = file.metadata()
            assert sorted(file.keys()) == keys
        assert header["mcpl.seed"] == "7" and "x" not in header and header["modelspec.sai_model_spec"] == "1.0.1"
        [found] = read(path)
        assert slug_of(found.word, "") == "bear"
        np.testing.assert_array_equal(found.vectors, written.numpy())


def test_the_header_hashes_the_tensors_alone(tmp_path):
    """ModelSpec's hash: sha256 of the bytes behind the header, so it is the same whatever the header tells."""
    import hashlib

    files = [safetensors_file("bear", vectors().numpy(), {"mcpl.seed": seed}) for seed in ("1", "22")]
    for data in files:
        length = int.from_bytes(data[:8], "little")
        told = json.loads(data[8 : 8 + length])["__metadata__"]["modelspec.hash_sha256"]
        assert told == "0x" + hashlib.sha256(data[8 + length :]).hexdigest()
    assert files[0] != files[1]


def write_layout(name: str, folder, v: torch.Tensor):
    """(path, word that is expected) of one file as that program writes it."""
    path = folder / ("my-toy.safetensors" if name not in PICKLED else "my-toy.pt")
    if name == "diffusers":
        save_file({"<cat-toy>": v}, path)
        return path, "<cat-toy>"
    if name == "diffusers .bin":
        torch.save({"<cat-toy>": v[0]}, path)  # one vector, no first axis
        return path, "<cat-toy>"
    if name == "kohya":
        save_file({"emb_params": v}, path)
        return path, "my-toy"
    if name == "OneTrainer":
        save_file({"emp_params": v.half()}, path)
        return path, "my-toy"
    if name == "A1111":
        path.write_bytes(a1111_file("toy", v.numpy(), 100, "v1-5"))
        return path, "toy"
    if name == "A1111 parameter":
        content = {"string_to_token": {"*": 265}, "string_to_param": {"*": nn.Parameter(v)}, "name": "toy", "step": 9}
        torch.save(content, path)
        return path, "toy"
    if name == "sdxl":
        save_file({"clip_l": v[:, :768].contiguous(), "clip_g": v[:, 768:].contiguous()}, path)
        return path, "my-toy"
    release_file(path, {"bear": v}, old_torch=name.endswith("old"))
    return path, "bear"


PICKLED = ("diffusers .bin", "A1111", "A1111 parameter", "release", "release old")


@pytest.mark.parametrize("name", ["diffusers", "kohya", "OneTrainer", "sdxl", *PICKLED])
def test_every_layout_is_read(tmp_path, name):
    n, width = (
        (1 if name == "diffusers .bin" else 3),
        {"sdxl": 2048, "release": 1280, "release old": 1280}.get(name, 768),
    )
    written = vectors(n, width)
    path, word = write_layout(name, tmp_path, written)
    [found] = read(path)
    expected = written.half().float() if name == "OneTrainer" else written
    assert found.word == word and found.vectors.dtype == np.float32
    np.testing.assert_array_equal(found.vectors, expected.numpy())


def test_the_release_keeps_several_words_in_one_file(tmp_path):
    words = {"bear": vectors(1, 1280), "board": vectors(2, 1280)}
    release_file(tmp_path / "embeddings.pt", words)
    found = {e.word: e.vectors for e in read(tmp_path / "embeddings.pt")}
    assert list(found) == ["bear", "board"]
    for word, written in words.items():
        np.testing.assert_array_equal(found[word], written.numpy())


def test_our_own_folder_names_a_file_that_does_not(tmp_path):
    folder = tmp_path / "concepts" / "bear"
    folder.mkdir(parents=True)
    save_file({"emb_params": vectors()}, folder / "learned_embeds.safetensors")
    assert read(folder / "learned_embeds.safetensors")[0].word == "bear"


class _Runs:
    """A pickle that would make a file when it is opened."""

    def __init__(self, marker) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("place", ["whole", "entry", "inside ParameterDict", "state of ParameterDict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path, place, zipped):
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    evil = _Runs(marker)
    if place == "whole":
        content = evil
    elif place == "entry":
        content = {"string_to_param": {"*": vectors()}, "name": evil}
    else:
        table = nn.ParameterDict({"bear": nn.Parameter(vectors())})
        if place == "inside ParameterDict":
            table._parameters["bear"] = evil
        else:
            table.__dict__["_forward_hooks"] = evil
        content = {"string_to_param": table}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConfigError, match=r"evil\.pt"):
        read(path)
    assert not marker.exists()
    if place in ("whole", "entry"):  # the trap works: a trusting reader falls into it
        torch.load(path, weights_only=False)
        assert marker.exists()


def test_a_class_that_is_not_allowed_is_named(tmp_path):
    torch.save({"string_to_param": nn.Linear(2, 2)}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match=r"asks for torch\.nn\.modules\.linear\.Linear.*safetensors"):
        read(tmp_path / "x.pt")


def test_reading_leaves_no_trust_behind(tmp_path):
    release_file(tmp_path / "x.pt", {"bear": vectors(1, 1280)})
    read(tmp_path / "x.pt")
    assert nn.ParameterDict not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"lora.up": vectors(), "lora.down": vectors()}, "no layout of learned words"),
        ({}, "no layout of learned words"),
        ({"<bear>": torch.ones(2, 3, 4)}, "shape"),
        ({"<bear>": torch.ones(2, 768, dtype=torch.int64)}, "shape"),
        ({"<bear>": torch.full((1, 768), float("nan"))}, "not finite"),
        ({"clip_l": vectors(2, 768), "clip_g": vectors(3, 1280)}, "as many"),
        ({"emp_params": vectors(), "emp_params_out": vectors()}, "behind the text encoder"),
    ],
)
def test_files_of_something_else_are_refused_in_one_sentence(tmp_path, content, told):
    save_file(content, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=told) as refused:
        read(tmp_path / "x.safetensors")
    assert "\n" not in str(refused.value) and "x.safetensors" in str(refused.value)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04half a zip", b"\x89PNG\r\n\x1a\n", b"\x80\x02}q\x00.", b"hello" * 9])
def test_damaged_files_are_refused_in_one_sentence(tmp_path, data):
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(ConfigError, match=r"x\.pt") as refused:
        read(tmp_path / "x.pt")
    assert "\n" not in str(refused.value)


def test_half_a_safetensors_file_is_refused(tmp_path):
    data = safetensors_file("bear", vectors().numpy(), {})
    (tmp_path / "x.safetensors").write_bytes(data[:-10])
    with pytest.raises(ConfigError, match="no whole safetensors file"):
        read(tmp_path / "x.safetensors")


def test_a_claimed_shape_is_not_believed(tmp_path):
    """One number stretched to a billion rows costs nothing to save and would cost gigabytes to read."""
    torch.save({"<bear>": torch.zeros(1, 768).expand(1_000_000_000, 768)}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="shape"):
        read(tmp_path / "x.pt")


def test_a_checkpoint_is_not_read_at_all(tmp_path):
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(70 << 20)
    with pytest.raises(ConfigError, match="model, not a learned word"):
        read(tmp_path / "model.safetensors")


def test_a_zip_that_swells_is_not_unpacked(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * (65 << 20))
    with pytest.raises(ConfigError, match="unpacks"):
        read(tmp_path / "x.pt")


@pytest.mark.parametrize("word", ["<bear>", "Bear", " <BEAR> ", "bear"])
def test_brackets_and_capitals_are_taken_off(word):
    assert slug_of(word, "x") == "bear"


@pytest.mark.parametrize(
    ("word", "suggested"), [("bear_1", "<bear>"), ("my bear", "<my-bear>"), ("*", "<word>"), ("2bears", "<bears>")]
)
def test_a_name_that_can_be_no_placeholder_is_told_with_one_that_can(word, suggested):
    with pytest.raises(ConfigError) as refused:
        slug_of(word, "x.pt")
    assert "x.pt" in str(refused.value) and suggested in str(refused.value)
    slug_of(suggested, "the suggestion")


def test_sd_xl_has_no_pickle_for_a1111():
    with pytest.raises(ConfigError, match="safetensors"):
        a1111_file("bear", vectors(1, 2048).numpy(), 1, "sdxl")


def test_diffusers_takes_our_a1111_file(tmp_path):
    """diffusers' own reader, on its own terms."""
    from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin, load_textual_inversion_state_dicts

    (tmp_path / "bear.pt").write_bytes(a1111_file("bear", vectors(3).numpy(), 100, "sd15"))
    [state] = load_textual_inversion_state_dicts([str(tmp_path / "bear.pt")])
    no_words = type("Tokenizer", (), {"get_vocab": lambda self: {}})()
    [word], [found] = TextualInversionLoaderMixin._retrieve_tokens_and_embeddings([None], [state], no_words)
    assert word == "bear" and torch.equal(found, vectors(3))
