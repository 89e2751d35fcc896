"""Our files in stock diffusers pipelines draw the very pictures that our slots draw, bit for bit."""

from __future__ import annotations

import pytest
import torch

from mcpl.data import concepts
from mcpl.data.embeddings import safetensors_file
from mcpl.errors import ConfigError
from mcpl.evaluation.sampling import Sampling, generate
from mcpl.models.catalogue import ASSETS, load
from mcpl.models.stock import load_words
from mcpl.prompts import parse

SENTENCE = "a red <bear> left of a blue <board>"
SAMPLING = Sampling(steps=3, guidance=3.0)


def words(folder, width: int, counts: dict[str, int]) -> list:
    """Files of random words, as an export writes them."""
    generator, paths = torch.Generator().manual_seed(1), []
    for slug, n in counts.items():
        path = folder / "concepts" / slug / "learned_embeds.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(safetensors_file(slug, torch.randn(n, width, generator=generator).numpy(), {}))
        paths.append(path)
    return paths


def stock_pipeline(directory):
    """As a stranger would load it, with the sampler that we use."""
    from diffusers import DDIMScheduler, DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, clip_sample=False, thresholding=False, timestep_spacing="trailing"
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_pictures(pipeline, sentence: str, noise: torch.Tensor) -> torch.Tensor:
    made = pipeline(
        sentence, latents=noise, num_images_per_prompt=len(noise), num_inference_steps=SAMPLING.steps,
        guidance_scale=SAMPLING.guidance, output_type="np",
    )  # fmt: skip
    return torch.from_numpy(made.images * 255).round().byte()


def both(base, pipeline, folder, n=2) -> tuple[torch.Tensor, torch.Tensor]:
    """(ours, theirs): pictures of the same sentence from the same noise."""
    ours = generate(base, parse(SENTENCE), concepts.load(folder), n, 3, SAMPLING)
    noise = torch.randn((n, *base.facts.latent_shape), generator=torch.Generator().manual_seed(3))
    return ours, stock_pictures(pipeline, SENTENCE, noise)


@pytest.mark.parametrize("counts", [(1, 1), (3, 3), (1, 3)], ids=str)
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_stock_diffusers_draws_the_same_picture(tmp_path, base_dir, kind, counts):
    base = load(str(base_dir(kind)), device="cpu")
    paths = words(tmp_path, base.facts.width, dict(zip(("bear", "board"), counts, strict=True)))
    pipeline = stock_pipeline(base_dir(kind))
    assert load_words(pipeline, paths) == ["<bear>", "<board>"]
    ours, theirs = both(base, pipeline, tmp_path)
    assert torch.equal(ours, theirs)
    words(tmp_path / "other", base.facts.width, dict(zip(("board", "bear"), counts[::-1], strict=True)))
    swapped = generate(base, parse(SENTENCE), concepts.load(tmp_path / "other"), 2, 3, SAMPLING)
    assert not torch.equal(ours, swapped), "the words decide what is drawn"


def test_the_shipped_base_draws_the_same_picture_without_our_help(tmp_path):
    """Nothing but diffusers' own call, as the card of a bank has it."""
    base = load("scenes-v1", device="cpu")
    paths = words(tmp_path, base.facts.width, {"bear": 2, "board": 2})
    pipeline = stock_pipeline(ASSETS / "scenes-v1")
    pipeline.load_textual_inversion([str(path) for path in paths], token=["<bear>", "<board>"])
    ours, theirs = both(base, pipeline, tmp_path)
    assert torch.equal(ours, theirs)


def test_sd_xls_old_configuration_would_take_a_word_for_the_sentences_end(tmp_path, base_dir):
    """Why load_words sets the end token: with `eos_token_id: 2` the pooled text is read at the newest word."""
    base = load(str(base_dir("sdxl")), device="cpu")
    paths = words(tmp_path, base.facts.width, {"bear": 1, "board": 1})
    pipeline = stock_pipeline(base_dir("sdxl"))
    load_words(pipeline, paths)
    pipeline.text_encoder_2.text_model.eos_token_id = 2
    ours, theirs = both(base, pipeline, tmp_path)
    assert not torch.equal(ours, theirs)


def test_a_word_of_sd_xl_does_not_go_into_sd_1(tmp_path, base_dir):
    [path] = words(tmp_path, 2048, {"bear": 1})
    with pytest.raises(ConfigError, match="has one text encoder"):
        load_words(stock_pipeline(base_dir("sd1")), [path])


def test_a_file_that_does_not_name_its_word_is_not_guessed_at(tmp_path, base_dir):
    from safetensors.torch import save_file

    save_file({"emb_params": torch.ones(1, 768)}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="concepts import"):
        load_words(stock_pipeline(base_dir("sd1")), [tmp_path / "x.safetensors"])


def test_a_word_of_another_base_is_refused_before_anything_is_drawn(tmp_path, base_dir):
    words(tmp_path, 1024, {"bear": 1, "board": 1})
    with pytest.raises(ConfigError, match=r"<bear> is 1024 wide, base .* has words 768 wide"):
        generate(load(str(base_dir("sd1")), device="cpu"), parse(SENTENCE), concepts.load(tmp_path), 1, 0, SAMPLING)
    with pytest.raises(ConfigError, match="no vectors are given for <bear>"):
        generate(load(str(base_dir("sd2")), device="cpu"), parse(SENTENCE), {}, 1, 0, SAMPLING)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "ldm"])
def test_an_ordinary_sentence_draws_as_it_does_in_stock_diffusers(base_dir, kind):
    """The paper's base, whose pipeline loads no words, is compared in this way alone. Its pipeline multiplies by the
    inverse where we divide: one step of 255 is allowed."""
    from diffusers import LDMTextToImagePipeline

    base, pipeline = load(str(base_dir(kind)), device="cpu"), stock_pipeline(base_dir(kind))
    noise = torch.randn((1, *base.facts.latent_shape), generator=torch.Generator().manual_seed(3))
    sentence = parse("a red star left of a blue ring", "list:zebra")
    assert not sentence.concepts
    ours = generate(base, sentence, {}, 1, 3, SAMPLING)
    assert ours.float().std() > 1
    if isinstance(pipeline, LDMTextToImagePipeline):
        made = pipeline(
            sentence.text, latents=noise, num_inference_steps=3, guidance_scale=3.0, output_type="np"
        ).images
        theirs = torch.from_numpy(made * 255).round().byte()
        assert (ours.int() - theirs.int()).abs().max() <= 1
    else:
        assert torch.equal(ours, stock_pictures(pipeline, sentence.text, noise))
