"""Teach the text encoder to read before the U-Net listens to it, as Stable Diffusion's encoder came trained.

From the state of each noun it tells that object's word, colour and texture, and from the second noun's on which side of
it the first one lies; from the state of the end token the ground, the relation and every object. A minute of this saves
the U-Net from finding out what "red" belongs to, and what goes below in "a ring above a cross".

The side is read through fixed directions of unit length, so that it has to be a loud part of the state. A reader that
may turn up the volume itself is content with a faint one, which the U-Net did not hear in 40,000 samples.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from mcpl.scenes.scene import COUNTS
from mcpl.scenes.training.data import scene_and_caption
from mcpl.scenes.world import COLOURS, GROUNDS, NEUTRAL_NOUN, RELATIONS, shapes

NOUNS = (*shapes("named"), NEUTRAL_NOUN)
OBJECTS = max(COUNTS)  # most objects of a training scene
UNTOLD = -100  # cross_entropy leaves such targets out
_OBJECT = re.compile(rf"a (?:({'|'.join(COLOURS)}) )?(?:(striped) )?({'|'.join(NOUNS)})\b")
_QUESTIONS = (len(NOUNS) + 1, len(COLOURS) + 1, 2)  # answers to: which noun, which colour, striped (0 = none, untold)
_SIDES = len(RELATIONS) + 1  # answers to: the relation told before a noun (0 = none)


def _parse(caption: str) -> list[tuple[int, int, int]]:
    """(noun, colour, striped) of each object that a caption tells, 0 where untold."""
    found = _OBJECT.findall(caption)
    return [(NOUNS.index(n) + 1, list(COLOURS).index(c) + 1 if c else 0, int(bool(s))) for c, s, n in found]


def _targets(captions: list[str], ids: torch.Tensor, nouns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers at the nouns, [B, L, 4], UNTOLD elsewhere; answers at the end token, [B, 3 * OBJECTS + 2]."""
    near = torch.full((*ids.shape, len(_QUESTIONS) + 1), UNTOLD)
    far = torch.zeros(len(captions), 3 * OBJECTS + 2, dtype=torch.long)
    for row, caption in enumerate(captions):
        objects = torch.tensor(_parse(caption), dtype=torch.long).view(-1, 3)
        far[row, : objects.numel()] = objects.flatten()
        for slot, phrases in ((-2, RELATIONS), (-1, GROUNDS)):
            told = [i for i, phrase in enumerate(phrases) if f" {phrase} " in caption]
            far[row, slot] = told[0] + 1 if told else 0
        relation = far[row, -2] * (torch.arange(len(objects)) == 1)
        near[row, torch.isin(ids[row], nouns)] = torch.cat([objects, relation[:, None]], 1)
    return near, far


def teach_reading(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, *, seed: int, steps: int, rows: int = 64) -> float:
    """Train `encoder` in place on captions drawn by `seed`; returns the last step's mean cross-entropy."""
    sizes_near, sizes_far = _QUESTIONS, (*_QUESTIONS * OBJECTS, len(RELATIONS) + 1, len(GROUNDS) + 1)
    torch.manual_seed(seed)
    width = encoder.config.hidden_size
    near_head, far_head = nn.Linear(width, sum(sizes_near)), nn.Linear(width, sum(sizes_far))
    sides = torch.linalg.qr(torch.randn(width, _SIDES)).Q
    parameters = [*encoder.parameters(), *near_head.parameters(), *far_head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0, fused=True)
    noun_ids = torch.tensor(tokenizer.convert_tokens_to_ids([f"{noun}</w>" for noun in NOUNS]))
    loss = torch.zeros(())
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50, (steps - step) / (0.3 * steps))
        captions = _captions(seed, step, rows)
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        near, far = _targets(captions, ids, noun_ids)
        output = encoder(input_ids=ids)
        states = output.last_hidden_state
        at_nouns = [*near_head(states).split(sizes_near, -1), states @ sides]
        at_end = far_head(output.pooler_output).split(sizes_far, -1)
        losses = [F.cross_entropy(a.flatten(0, 1), near[..., i].flatten()) for i, a in enumerate(at_nouns)]
        losses += [F.cross_entropy(a, far[:, i]) for i, a in enumerate(at_end)]
        loss = torch.stack(losses).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return loss.item()


def _captions(seed: int, step: int, rows: int) -> list[str]:
    first = 2**40 + step * rows  # far from the samples that the U-Net trains on
    return [scene_and_caption(seed, first + row)[1] for row in range(rows)]
