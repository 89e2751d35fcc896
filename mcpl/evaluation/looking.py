"""Where every word of a sentence, learned or ordinary, looks on a real picture: by time step, as masks, as labels.

The picture is noised to the centres of equal time-step buckets and denoised once each, as a learner's look does; the
maps are those of that pass. Nothing is drawn and nothing is learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mcpl.diffusion import add_noise, bucket_centres
from mcpl.errors import ConfigError
from mcpl.evaluation.sampling import condition, repeated
from mcpl.models.base import BaseModel
from mcpl.objectives.attention import binarise, normalise, refine
from mcpl.prompts import is_content, word_positions
from mcpl.types import Sentence

ROWS = 4
"""time steps in one U-Net call: what a training step of the default recipes needs"""
REFINE = 1
"""times that masks' maps are spread along self-attention"""
THRESHOLD = 0.5
"""share of a map's maximum from which a pixel belongs to its word"""


@dataclass(frozen=True)
class WordLooks:
    """Cross-attention of W words at t time steps."""

    words: tuple[int, ...]
    """indices into the sentence's words"""
    timesteps: Tensor
    """[t] int64, from little noise to much"""
    by_time: Tensor
    """[t, W, m, m] mean over layers, heads and the word's pieces: shares of the softmax over all tokens"""
    refined: Tensor
    """[W, m, m] mean over time steps of the maps spread along self-attention"""

    @property
    def maps(self) -> Tensor:
        """Mean over time steps, divided by its maximum. [W, m, m] in 0..1"""
        return normalise(self.by_time.mean(dim=0))

    def masks(self, size: tuple[int, int], threshold: float = THRESHOLD) -> Tensor:
        """Where each word's refined map, enlarged smoothly, reaches `threshold` of its maximum. [W, H, W'] bool"""
        return binarise(self._enlarged(size), threshold).bool()

    def labels(self, size: tuple[int, int], segmented: Sequence[int], threshold: float = THRESHOLD) -> Tensor:
        """Each pixel's word: 1 + index into `segmented` (indices into W), 0 for none. [H, W'] uint8

        Of several masks a pixel takes that of the word whose map is strongest there against its own mean: a word that
        looks everywhere takes nothing from one that looks here.
        """
        maps = self._enlarged(size)[list(segmented)]
        share = maps / maps.mean(dim=(-2, -1), keepdim=True).clamp_min(1e-12) * binarise(maps, threshold)
        strongest = share.max(dim=0)
        return torch.where(strongest.values > 0, strongest.indices + 1, 0).to(torch.uint8)

    def _enlarged(self, size: tuple[int, int]) -> Tensor:
        return F.interpolate(self.refined[None], size=size, mode="bilinear", align_corners=False)[0]


@torch.no_grad()
def look(
    model: BaseModel,
    pixels: Tensor,
    sentence: Sentence,
    vectors: Mapping[str, Tensor],
    words: Sequence[int],
    timesteps: int = 10,
    seed: int = 0,
    times: int = REFINE,
) -> WordLooks:
    """Where `words` (indices into the sentence's words) look on a picture [3, H, W] in -1..1 of the base's resolution.

    vectors: slug -> [k, D]; seed: of the noise; times: that masks' maps are spread along self-attention.
    Raises ConfigError for a word without vectors, of another base, or that the tokenizer makes nothing of.
    """
    given = condition(model, sentence, vectors)
    counts = [len(vectors[concept.slug]) for concept in sentence.concepts]
    places = word_positions(sentence, model.vocabulary, counts)
    if empty := [sentence.words[i].text for i in words if not places[i]]:
        raise ConfigError(f"the tokenizer of {model.facts.name} makes nothing of {empty[0]!r}")
    columns = [place for i in words for place in places[i]]
    latents = model.encode_pictures(pixels[None])
    noise = torch.randn((timesteps, *latents.shape[1:]), generator=torch.Generator().manual_seed(seed)).to(latents)
    centres = bucket_centres(timesteps, len(model.alphas_cumprod)).to(model.device)
    raw, spread = [], []
    for start in range(0, timesteps, ROWS):
        t, eps = centres[start : start + ROWS], noise[start : start + ROWS]
        positions = torch.tensor(columns, device=model.device).expand(len(t), -1)
        with model.record(positions, affinity=times > 0) as recording:
            noisy = add_noise(latents.expand(len(t), -1, -1, -1), eps, t, model.alphas_cumprod)
            model.predict(noisy, t, repeated(given, len(t)))
        maps = per_word(recording.maps(), [len(places[i]) for i in words])
        raw.append(maps)
        spread.append(refine(maps, recording.affinity(), times) if times else maps)
    by_time, refined = torch.cat(raw).float().cpu(), torch.cat(spread).float().mean(dim=0).cpu()
    return WordLooks(tuple(words), centres.cpu(), by_time, refined)


def per_word(columns: Tensor, pieces: Sequence[int]) -> Tensor:
    """Token maps [B, M, m, m], neighbours of one word beside each other, as word maps [B, W, m, m]: their mean."""
    return torch.stack([part.mean(dim=1) for part in columns.split(list(pieces), dim=1)], dim=1)


def content(sentence: Sentence) -> tuple[int, ...]:
    """Indices of the words that say something: learned ones, and ordinary ones that are no function words."""
    return tuple(i for i, word in enumerate(sentence.words) if word.role != "word" or is_content(word.text))


def things(sentence: Sentence) -> tuple[int, ...]:
    """Indices of the words that name things: the learned objects, or, in a sentence without any, every content word
    that does not stand before another."""
    words, said = sentence.words, content(sentence)
    objects = [i for i in said if words[i].role == "placeholder" and sentence.concepts[words[i].concept].is_object]
    return tuple(objects or (i for i in said if i + 1 not in said))
