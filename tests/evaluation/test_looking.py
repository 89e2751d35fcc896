"""Maps of any word on a real picture are those that the network's softmax would give, and masks cut them as said."""

import pytest
import torch
from torch.nn import functional as F

from mcpl.diffusion import add_noise, bucket_centres
from mcpl.errors import ConfigError
from mcpl.evaluation.looking import WordLooks, content, look, things
from mcpl.models.catalogue import load
from mcpl.prompts import said

TEXT = "a red <star> left of a blue ring"


def words(sentence, *names):
    return [i for i, word in enumerate(sentence.words) if word.text in names]


@pytest.fixture
def vectors(tiny):
    return {"star": torch.randn(2, tiny.facts.width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)}


def test_maps_are_the_mean_over_pieces_of_every_layers_softmax(tiny, pixels, vectors):
    """Against attention computed from the U-Net's own queries and keys, with the vectors put in by hand."""
    sentence = said(TEXT)
    chosen = words(sentence, "<star>", "blue")
    looks = look(tiny, pixels(1)[0], sentence, vectors, chosen, timesteps=3)
    assert looks.by_time.shape == (3, 2, 8, 8)

    ids = [p for word in sentence.words if word.text != "<star>" for p in tiny.vocabulary.pieces(word.text)]
    v = tiny.vocabulary
    tokens = [v.start, *ids[:2], ids[0], ids[0], *ids[2:], v.end]  # the two vectors stand after "a red"
    row = torch.full((1, v.length), v.pad)
    row[0, : len(tokens)] = torch.tensor(tokens)
    slots = torch.full_like(row, -1)
    slots[0, 3:5] = torch.tensor([0, 1])
    hidden = tiny.encode_prompts(row, slots, vectors["star"])
    latents = tiny.encode_pictures(pixels(1))
    noise = torch.randn((3, *latents.shape[1:]), generator=torch.Generator().manual_seed(0)).to(latents)
    times = bucket_centres(3, len(tiny.alphas_cumprod))
    blue = tokens.index(v.pieces("blue")[0])
    for t in range(3):
        seen, handles = [], []
        for module in tiny._unet.modules():
            if getattr(module, "is_cross_attention", False) and hasattr(module, "to_q"):

                def keep(module, inputs, kwargs, seen=seen):
                    q = module.to_q(inputs[0])
                    k = module.to_k(kwargs["encoder_hidden_states"])
                    q, k = (x.unflatten(-1, (module.heads, -1)).transpose(1, 2) for x in (q, k))
                    seen.append((q @ k.transpose(-1, -2) * module.scale).softmax(-1).mean(1)[0])

                handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
        with torch.no_grad():
            tiny.predict(
                add_noise(latents, noise[t : t + 1], times[t : t + 1], tiny.alphas_cumprod), times[t : t + 1], hidden
            )
        for handle in handles:
            handle.remove()
        mean = torch.stack([layer for layer in seen if len(layer) == 64]).mean(0)  # [64, L]
        star, ring = mean[:, 3:5].mean(1).view(8, 8), mean[:, blue].view(8, 8)
        torch.testing.assert_close(looks.by_time[t], torch.stack([star, ring]).float(), atol=1e-6, rtol=1e-5)


def test_looking_changes_nothing_and_repeats_itself(tiny, pixels, vectors):
    before, sentence = tiny.state_digest(), said(TEXT)
    first, again = (look(tiny, pixels(1)[0], sentence, vectors, content(sentence), seed=5) for _ in range(2))
    assert torch.equal(first.by_time, again.by_time) and torch.equal(first.refined, again.refined)
    other = look(tiny, pixels(1)[0], sentence, vectors, content(sentence), seed=6)
    assert not torch.equal(first.by_time, other.by_time)
    assert tiny.state_digest() == before
    with pytest.raises(ConfigError, match="<star>"):
        look(tiny, pixels(1)[0], sentence, {}, content(sentence))


def test_words_that_say_something_and_things_that_they_name():
    def texts(sentence, indices):
        return [sentence.words[i].text for i in indices]

    sentence = said("a red <star> left of the big blue ring, on a <beside:on> grey ground")
    assert texts(sentence, content(sentence)) == ["red", "<star>", "big", "blue", "ring", "<beside>", "grey", "ground"]
    assert texts(sentence, things(sentence)) == ["<star>"], "learned objects, and no learned relation"
    plain = said("a red star left of the big blue ring")
    assert texts(plain, things(plain)) == ["star", "ring"]


def test_a_pixel_belongs_to_the_strongest_of_the_words_that_reach_it():
    refined = torch.tensor([[[1.0, 0.6], [0.2, 0.0]], [[0.2, 0.9], [1.0, 0.1]], [[0.5, 0.5], [0.5, 2.0]]])
    looks = WordLooks((1, 4, 6), torch.tensor([5]), refined[None], refined)
    assert looks.masks((2, 2)).int().tolist() == [[[1, 1], [0, 0]], [[0, 1], [1, 0]], [[0, 0], [0, 1]]]
    assert looks.labels((2, 2), [0, 1]).tolist() == [[1, 2], [2, 0]]
    assert looks.labels((2, 2), [2]).tolist() == [[0, 0], [0, 1]], "labels are places in `segmented`"
    everywhere = torch.cat([refined[:1], torch.tensor([[[1.0, 1.0], [1.0, 0.9]]])])
    flat = WordLooks((1, 4), torch.tensor([5]), everywhere[None], everywhere)
    assert flat.labels((2, 2), [0, 1]).tolist() == [[1, 1], [2, 2]], "one looks everywhere"
    assert looks.masks((2, 2), 0.95).int().tolist()[1] == [[0, 0], [1, 0]]
    larger = F.interpolate(refined[None], size=(6, 6), mode="bilinear", align_corners=False)[0]
    assert torch.equal(looks.masks((6, 6))[0], larger[0] >= 0.5 * larger[0].max())


def test_maps_are_means_over_time_by_their_own_maximum():
    by_time = torch.tensor([[[[0.1, 0.2], [0.0, 0.0]]], [[[0.3, 0.0], [0.0, 0.0]]]])
    looks = WordLooks((0,), torch.tensor([1, 2]), by_time, by_time[0])
    torch.testing.assert_close(looks.maps, torch.tensor([[[1.0, 0.5], [0.0, 0.0]]]))


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "ldm"])
def test_every_kind_of_base_is_looked_at(base_dir, kind):
    model, sentence = load(str(base_dir(kind)), device="cpu"), said(TEXT)
    vectors = {"star": torch.randn(3, model.facts.width, generator=torch.Generator().manual_seed(0))}
    pixels = torch.zeros(3, model.facts.resolution, model.facts.resolution)
    looks = look(model, pixels, sentence, vectors, content(sentence), timesteps=5)
    side = model.facts.attention_size
    assert looks.by_time.shape == (5, 4, side, side) and looks.by_time.isfinite().all()
    assert looks.by_time.min() > 0 and looks.by_time.sum(dim=1).max() < 1, "shares of one softmax"
    assert looks.refined.isfinite().all() and looks.masks((64, 64)).any(dim=(1, 2)).all()
