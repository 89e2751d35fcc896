"""Feature spaces on real architectures with small random weights, saved and loaded as the hub's are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mcpl.errors import ConfigError
from mcpl.evaluation import features
from mcpl.evaluation.features import FEATURES, find, load

SIDE = 16
SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": SIDE,
    "patch_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """name -> directory of a small encoder of that kind with its processor, as the hub has them."""
    import transformers as t
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    text = {k: v for k, v in SMALL.items() if k not in ("image_size", "patch_size")}
    told = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "projection_dim": 12}
    seen = {**SMALL, "projection_dim": 12}
    whole_clip = t.CLIPConfig(text_config={**text, **told}, vision_config=seen, projection_dim=12)
    crop = {"size": {"shortest_edge": 20}, "crop_size": {"height": SIDE, "width": SIDE}}
    dino = {k: v for k, v in SMALL.items() if k != "intermediate_size"}
    made = {
        "clip": (t.CLIPModel(whole_clip), CLIPImageProcessorPil(**crop)),
        "dinov1": (t.ViTModel(t.ViTConfig(**SMALL)), ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})),
        "dinov2": (t.Dinov2Model(t.Dinov2Config(**dino, mlp_ratio=2)), BitImageProcessorPil(**crop)),
    }
    for name, (model, processor) in made.items():
        where = tmp_path_factory.mktemp(name)
        model.save_pretrained(where)
        processor.save_pretrained(where)
        made[name] = where
    return made


@pytest.fixture
def pictures():
    coarse = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(each).resize((40, 30), Image.Resampling.BICUBIC)) for each in coarse])


@pytest.mark.parametrize("name", ["clip", "dinov1", "dinov2"])
def test_every_encoder_of_the_paper_says_what_its_model_says(directory, pictures, name, monkeypatch):
    """Resized, cropped and normalised by hand with Pillow and NumPy, then through the model itself."""
    import json

    import transformers as t

    monkeypatch.setattr(features, "BATCH", 2)
    space = load(*find(f"{name}={directory[name]}"))
    found = space(pictures)
    told = json.loads((directory[name] / "preprocessor_config.json").read_text())
    if "shortest_edge" in told["size"]:
        short = told["size"]["shortest_edge"]
        size, left, top = (short * 40 // 30, short), (short * 40 // 30 - SIDE) // 2, (short - SIDE) // 2
    else:
        size, left, top = (SIDE, SIDE), 0, 0
    resized = [np.asarray(Image.fromarray(p).resize(size, Image.Resampling(told["resample"]))) for p in pictures]
    cut = np.stack(resized)[:, top : top + SIDE, left : left + SIDE].astype(np.float64) / 255
    pixels = torch.tensor((cut - told["image_mean"]) / told["image_std"]).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        if name == "clip":
            model = t.CLIPModel.from_pretrained(directory[name])
            expected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        else:
            expected = t.AutoModel.from_pretrained(directory[name])(pixel_values=pixels).last_hidden_state[:, 0]
    assert found.shape == (3, 12 if name == "clip" else 16)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)
    assert np.array_equal(space(pictures), found) and not np.allclose(found[0], found[1], atol=1e-4)


def test_the_judge_stands_in_and_says_so():
    from mcpl.scenes.judge import Judge

    name, source, digest = find("judge")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    space = load(name, source, digest)
    assert space.name == "judge" and not source, "another machine has it in another place"
    np.testing.assert_array_equal(space(pictures), Judge.load().features(pictures).numpy())


def test_the_digest_is_that_of_the_weights(directory, tmp_path):
    import shutil

    copy = shutil.copytree(directory["dinov1"], tmp_path / "copy")
    name, source, digest = find(f"dinov1={copy}")
    assert digest == find(f"dinov1={directory['dinov1']}")[2]
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ConfigError, match="another encoder than when this evaluation began"):
        load(name, source, digest)


def test_what_cannot_be_had_is_told_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="there are judge, clip, dinov1, dinov2"):
        find("inception")
    with pytest.raises(ConfigError, match="clip=DIRECTORY, or use judge"):
        find("clip=owner/nowhere")
    with pytest.raises(ConfigError, match="neither a directory nor a hub id"):
        find(f"clip={tmp_path}/nowhere")
    with pytest.raises(ConfigError, match="holds no weights"):
        find(f"dinov2={tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="is no encoder of pictures"):
        load(*find(f"dinov2={tmp_path}"))
    assert {kind.source for kind in FEATURES.values()} >= {
        "openai/clip-vit-base-patch32", "facebook/dino-vits16", "facebook/dinov2-small",
    }  # fmt: skip
