"""The peer: one word from one picture, in one process, with the habits of diffusers' `textual_inversion.py`.

    python -m benchmarks.textual_inversion PICTURE.png --word star --initializer heart --base DIR --steps 200 --out DIR

Written by us as a minimal stand-in, with the same base and the same batch as ours. Its habits: the placeholder is a new
row of the resized embedding table; all rows are in AdamW and get a gradient, and after every step all but the new one
are put back; each row of a batch is loaded, resized and tokenised again, and encoded by the autoencoder again; the loss
is read every step. Left out, in the peer's favour: accelerate, checkpoints, validation pictures. Nothing of `mcpl` is
imported, so its start-up is its own.

`--release` adds the habits of MCPL's official release: attention of all layers, self and cross, computed as an explicit
softmax and stored at every step, in float32, with anomaly detection on.

The last line is JSON: loop_s, step_s (mean of the steps after the first two, loading included), and where the words of
the steps in `--keep` were written (safetensors, one row each).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer, CLIPTextModel

TEMPLATES = ("a photo of {}", "a picture of {}", "an image of {}", "a rendering of {}", "a drawing of {}")


class OnePicture(Dataset):
    """One picture again and again: decoded, resized, and its sentence tokenised, for every row."""

    def __init__(self, picture: Path, tokenizer, placeholder: str, side: int, repeats: int):
        self.picture, self.tokenizer, self.placeholder = picture, tokenizer, placeholder
        self.side, self.repeats = side, repeats

    def __len__(self) -> int:
        return self.repeats

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = Image.open(self.picture).convert("RGB").resize((self.side, self.side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 127.5 - 1.0).permute(2, 0, 1)
        text = random.choice(TEMPLATES).format(self.placeholder)
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(text, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return {"pixels": pixels, "token_ids": tokens.input_ids[0]}


class Stored:
    """An attention processor that keeps every layer's probabilities, as prompt-to-prompt's controllers do."""

    def __init__(self, store: list[torch.Tensor]):
        self.store = store

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
        )
        probabilities = attn.get_attention_scores(query.float(), key.float(), attention_mask)
        self.store.append(probabilities)
        out = attn.batch_to_head_dim(probabilities.to(value.dtype) @ value)
        return attn.to_out[1](attn.to_out[0](out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("--word", required=True)
    parser.add_argument("--initializer", required=True, help="words whose mean row it starts from, comma-separated")
    parser.add_argument("--base", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=5e-4, help="the script's documented rate; its default is 1e-4")
    parser.add_argument("--keep", default="", help="steps after which the word is written; the last always is")
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's own choice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--release", action="store_true", help="the habits of MCPL's official release on top")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    random.seed(given.seed)
    torch.manual_seed(given.seed)
    torch.autograd.set_detect_anomaly(given.release)
    given.out.mkdir(parents=True, exist_ok=True)

    tokenizer = AutoTokenizer.from_pretrained(given.base / "tokenizer")
    text, vae, unet = (
        kind.from_pretrained(given.base / folder, torch_dtype=torch.float32, low_cpu_mem_usage=False)
        for kind, folder in ((CLIPTextModel, "text_encoder"), (AutoencoderKL, "vae"), (UNet2DConditionModel, "unet"))
    )
    noising = DDPMScheduler.from_pretrained(given.base / "scheduler")
    placeholder = f"<{given.word}>"
    tokenizer.add_tokens([placeholder])
    new = tokenizer.convert_tokens_to_ids(placeholder)
    text.resize_token_embeddings(len(tokenizer))
    table = text.get_input_embeddings().weight
    starts = [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word)[0]) for word in given.initializer.split(",")]
    with torch.no_grad():
        mean = table[starts].mean(dim=0)
        table[new] = mean / mean.norm() * table[starts].norm(dim=-1).mean()  # as long as a word, as ours starts
    for network in (text, vae, unet):
        network.requires_grad_(False)
    table.requires_grad_(True)
    text.train()
    optimizer = torch.optim.AdamW([table], lr=given.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    others, before = torch.arange(len(table)) != new, table.detach().clone()
    stored: list[torch.Tensor] = []
    if given.release:
        unet.set_attn_processor(Stored(stored))
    side = unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
    data = OnePicture(given.picture, tokenizer, placeholder, side, given.steps * given.batch)
    loader = DataLoader(data, batch_size=given.batch, shuffle=True)

    keep, kept = {int(step) for step in given.keep.split(",") if step} | {given.steps}, {}
    ends = [time.perf_counter()]

    def write(step: int) -> None:
        kept[step] = str(given.out / f"{given.word}-{step}.safetensors")
        save_file({given.word: table[new].detach().clone()[None]}, kept[step])

    if 0 in keep:
        write(0)
    for step, batch in enumerate(loader, start=1):
        latents = vae.encode(batch["pixels"]).latent_dist.sample().detach() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, noising.config.num_train_timesteps, (len(latents),))
        noisy = noising.add_noise(latents, noise, timesteps)
        hidden = text(batch["token_ids"])[0]
        prediction = unet(noisy, timesteps, encoder_hidden_states=hidden).sample
        wanted = noise
        if noising.config.prediction_type == "v_prediction":
            wanted = noising.get_velocity(latents, noise, timesteps)
        loss = F.mse_loss(prediction.float(), wanted.float())
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        with torch.no_grad():
            table[others] = before[others]
        loss.detach().item()
        stored.clear()
        if step in keep:
            write(step)
        ends.append(time.perf_counter())
    first = min(2, len(ends) - 2)
    print(json.dumps({
        "loop_s": ends[-1] - ends[0], "step_s": (ends[-1] - ends[first]) / (len(ends) - 1 - first),
        "steps": len(ends) - 1, "threads": torch.get_num_threads(), "kept": kept,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
