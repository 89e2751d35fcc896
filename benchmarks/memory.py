"""How much memory learning needs, by base, precision and pack, at the full size of the published architectures.

    python -m benchmarks.memory [--bases sd15,sdxl] [--precisions float32,bfloat16] [--packs 1,2] [--batch 4]
    python -m benchmarks.memory --run --device cuda          # measured: learns a few steps and reads the peak
    python -m benchmarks.memory --run --device cpu --bases sd15 --precisions float32 --packs 1 --batch 1 --steps 1

No weights are downloaded: the architectures come from their public configurations, with random numbers. Without
`--run` nothing is computed either: forward and backward pass are traced on PyTorch's meta device, and what is alive at
once is added up (allocator and kernels' workspace come on top; fused attention is assumed, as on a GPU). With `--run`
each line is a process of its own; on a CPU the peak is the process's resident memory, libraries included.
The last line is JSON, sizes in GB of 1e9 bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from benchmarks.provenance import say
from mcpl.learning.batch import make_job
from mcpl.learning.learner import Learner
from mcpl.learning.settings import LearningSettings
from mcpl.models.base import BaseModel
from mcpl.models.catalogue import DTYPES
from mcpl.orchestration.memory import Alive
from mcpl.prompts import TEMPLATES, parse
from mcpl.types import Pack

SENTENCE = "a red <star> left of a blue <ring>"

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
SD_BLOCKS = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
XL_BLOCKS = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
UNETS = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8, **SD_BLOCKS},
    "sd21": {
        "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True, **SD_BLOCKS,
    },
    "sdxl": {
        "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True, **XL_BLOCKS,
    },
}  # fmt: skip
TEXTS = {"sd15": (CLIP_L,), "sd21": (CLIP_H,), "sdxl": (CLIP_L, CLIP_G)}
"""the second of SD XL is one with a projection"""


def full_size(base: str, precision: str, device: str) -> BaseModel:
    """A base of the published size with random weights on a device, 'meta' included."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from mcpl.models.stable_diffusion import StableDiffusion
    from mcpl.models.stable_diffusion_xl import StableDiffusionXL
    from mcpl.scenes.grammar import vocabulary
    from mcpl.scenes.training.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(vocabulary(TEMPLATES))
    tokenizer.model_max_length = 77
    common = {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": tokenizer.eos_token_id}
    with torch.device("meta"), _default_dtype(DTYPES[precision]):
        unet = UNet2DConditionModel(**UNETS[base])
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=8 * unet.config.sample_size,
        )
        texts = [
            (CLIPTextModelWithProjection if number else CLIPTextModel)(
                CLIPTextConfig(**common, **config, projection_dim=config["hidden_size"])
            )
            for number, config in enumerate(TEXTS[base])
        ]
    if device != "meta":
        for network in (unet, vae, *texts):
            _fill(network, device)
    pipeline = SimpleNamespace(
        unet=unet, vae=vae, text_encoder=texts[0], text_encoder_2=texts[-1], tokenizer=tokenizer,
        tokenizer_2=tokenizer, scheduler=DDIMScheduler(beta_schedule="scaled_linear", beta_end=0.012),
        config=SimpleNamespace(force_zeros_for_empty_prompt=True),
    )  # fmt: skip
    adapter = StableDiffusionXL if len(texts) == 2 else StableDiffusion
    return adapter(pipeline, base, "random", ("thing",))


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype):
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def _fill(network: nn.Module, device: str) -> None:
    """Random weights of a usual size, straight onto the device: every page is touched, nothing is built twice."""
    network.to_empty(device=device)
    for name, value in network.named_parameters():
        with torch.no_grad():
            if value.ndim > 1:
                value.uniform_(-1, 1).mul_(value[0].numel() ** -0.5)
            else:
                value.fill_(1.0 if name.endswith("weight") else 0.0)
    for name, value in network.named_buffers():
        if name.endswith("position_ids"):
            value.copy_(torch.arange(value.shape[-1]).expand_as(value))


class _FusedAttention(torch.autograd.Function):
    """The memory of fused attention: it keeps queries, keys, values and result, and no table of scores."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


@contextlib.contextmanager
def _fused_attention():
    usual = nn.functional.scaled_dot_product_attention
    nn.functional.scaled_dot_product_attention = lambda q, k, v, *_a, **_k: _FusedAttention.apply(q, k, v)
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = usual


def weights(model: BaseModel) -> int:
    """Bytes of the networks. The encoder of pictures is among them, though a step does not use it."""
    networks = model._networks
    return sum(p.numel() * p.element_size() for network in networks for p in network.parameters())


def counted(base: str, precision: str, pack: int, batch: int, save_memory: bool) -> dict:
    """One step's peak, traced on the meta device: weights and everything that is alive at once."""
    model = full_size(base, precision, "meta")
    if save_memory:
        model.save_memory()
    rows, length = pack * batch, model.vocabulary.length
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    learned = torch.zeros(2 * pack, model.facts.width, device="meta", requires_grad=True)
    noisy = torch.zeros(rows, *model.facts.latent_shape, device="meta", dtype=model.dtype)
    timesteps = torch.zeros(rows, dtype=torch.long, device="meta")
    with _fused_attention(), Alive() as alive:
        prediction = model.predict(noisy, timesteps, model.encode_prompts(ids, ids, learned))
        loss = prediction.to(torch.float32).square().mean()
        torch.autograd.grad(loss, learned)
        del prediction, loss
    return {
        "weights_gb": weights(model) / 1e9,
        "step_gb": alive.peak / 1e9,
        "peak_gb": (weights(model) + alive.peak) / 1e9,
    }


def measured(base: str, precision: str, pack: int, batch: int, save_memory: bool, device: str, steps: int) -> dict:
    """A few steps of the learner on a real device; the peak of this process. Called in a process of its own."""
    import resource
    import time

    model = full_size(base, precision, device)
    if save_memory:
        model.save_memory()
    settings = LearningSettings(steps=steps, batch=batch, probe_timesteps=1, probe_every=10**6, attention_mask=None)
    side = model.facts.resolution
    started = time.monotonic()
    pixels = torch.rand(3, side, side) * 2 - 1
    jobs = tuple(make_job(model, f"picture-{i}", parse(SENTENCE), pixels, settings) for i in range(pack))
    results = Learner(model, Pack(jobs), settings).run()
    on_gpu = device.startswith("cuda")
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "weights_gb": weights(model) / 1e9,
        "peak_gb": peak / 1e9,
        "seconds": round(time.monotonic() - started, 1),
        "finite": all(bool(c.vectors.isfinite().all()) for r in results for c in r.concepts),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu, resident memory",
    }


def _in_a_process(case: dict) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--case", json.dumps(case)], capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        return {"error": f"exit code {done.returncode}: {last[:200]}"}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", default="sd15,sd21,sdxl")
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("--packs", default="1,2,4")
    parser.add_argument("--batch", type=int, default=4, help="rows of a picture per step (the recipe's)")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--saving", default="no,yes", help="without and with save_memory")
    parser.add_argument("--run", action="store_true", help="learn and measure rather than trace and count")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--write", type=Path, help="also keep the last line in this file")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measured(**json.loads(options.case))))
        return
    lines = []
    for base in options.bases.split(","):
        for precision in options.precisions.split(","):
            for pack in map(int, options.packs.split(",")):
                for saving in options.saving.split(","):
                    case = {"base": base, "precision": precision, "pack": pack, "batch": options.batch}
                    case["save_memory"] = saving == "yes"
                    if options.run:
                        found = _in_a_process(case | {"device": options.device, "steps": options.steps})
                    else:
                        found = counted(**case)
                    lines.append(case | {k: round(v, 2) if isinstance(v, float) else v for k, v in found.items()})
                    print(" ".join(f"{name}={value}" for name, value in lines[-1].items()), flush=True)
    say({"how": "measured" if options.run else "counted on the meta device", "lines": lines}, "benchmarks.memory",
        options.write)  # fmt: skip


if __name__ == "__main__":
    main()
