"""How close a step comes to what the machine can do: counted operations over measured rates.

    python -m benchmarks.roofline [--pack 8] [--recipe paper] [--seconds 8]
    python -m benchmarks.roofline --part gpu --gpu-bases sd15,sdxl --gpu-packs 1,2,4,8,16 --gpu-compiled 8    # on a GPU

Counted: floating-point operations of one step's matrix products, convolutions and attention, forwards and backwards (no
gradient of weights is computed, so none is counted), and the fewest bytes that must move: every weight read once
forwards and once backwards, every activation that the backward pass needs written once and read once. Measured in the
same run, by the same process and threads: the rate of a large matrix product and that of a large copy. Utilisation is
counted operations over those that the matrix rate would have done in the step's time. A profile of some steps says
where the time goes, by kind of operator. The last line is JSON.

The second part learns with Stable Diffusion 1.5 and XL at their published sizes, random weights, bfloat16, and compares
with diffusers' own U-Net forwards and backwards to its input, of the same rows: as the commands learn, and for packs of
`--gpu-compiled` with the U-Net compiled. On a machine without a GPU it says "not measured"; `--rehearse` runs its code
on the CPU with the small base, uncompiled.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from benchmarks.jobs import BASE, JUDGE, endless, scene_jobs, under_way
from benchmarks.provenance import say
from mcpl.cli.terminal import one_line
from mcpl.config import Recipe
from mcpl.learning.batch import make_job
from mcpl.learning.learner import Learner
from mcpl.models.base import BaseModel
from mcpl.prompts import parse
from mcpl.types import Job


def _attention(query: Tensor, key: Tensor, value: Tensor, *_args, **_more) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_args, **_more) -> int:
    return 2 * sdpa_flop_count(query.shape, key.shape, value.shape)


aten = torch.ops.aten
FORMULAS: dict[object, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten._scaled_dot_product_flash_attention_backward: _attention_backward,
    aten._scaled_dot_product_efficient_attention_backward: _attention_backward,
    aten._scaled_dot_product_cudnn_attention_backward: _attention_backward,
}
"""operator -> counted operations. PyTorch's table knows no attention on a CPU, and counts the scores that a fused
backward pass computes again: work, but none that the mathematics asks for, so four products backwards and not five"""


class Operations(TorchDispatchMode):
    """Adds up the floating-point operations of everything that runs inside, two for a multiplication and addition."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if formula := FORMULAS.get(function._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


@dataclass(frozen=True)
class Counted:
    """What one step of a learner must do."""

    operations: int
    weight_bytes: int
    """of the networks that a step uses"""
    kept_bytes: int
    """of activations kept for the backward pass"""

    @property
    def fewest_bytes(self) -> int:
        """Weights and kept activations, each moved twice."""
        return 2 * (self.weight_bytes + self.kept_bytes)


def counted(learner: Learner) -> Counted:
    """Run one step and count it."""
    networks = (learner.model._unet, *learner.model._texts)
    weights = {p.untyped_storage().data_ptr() for network in networks for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        where = value.untyped_storage()
        if where.data_ptr() not in weights:
            kept[where.data_ptr()] = where.nbytes()
        return value

    with Operations() as operations, torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        learner.advance()
    return Counted(operations.total, sum(_size(network) for network in networks), sum(kept.values()))


def _size(network: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


def best_of(work: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Shortest time of one call, over at least three and so many seconds.

    One thread on a CPU is timed by its processor time, which other processes' load changes less.
    """
    times: list[float] = []
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    work()
    while len(times) < 3 or sum(times) < seconds:
        _wait(device)
        started = clock()
        work()
        _wait(device)
        times.append(clock() - started)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations per second of the best large matrix product."""
    rates = []
    for side in (512, 1024) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        rates.append(2 * side**3 / best_of(lambda a=a, b=b: a @ b, seconds, device))
    return max(rates)


def copy_rate(device: torch.device, seconds: float = 1.0) -> float:
    """Bytes per second of a large copy, read and written both counted."""
    size = 2**28 if device.type == "cpu" else 2**31
    source, goal = (torch.ones(size // 4, device=device) for _ in range(2))
    return 2 * size / best_of(lambda: goal.copy_(source), seconds, device)


def cpu(pack: int, recipe: Recipe, seconds: float) -> dict:
    """The small base on this process's threads."""
    device = torch.device("cpu")
    model, jobs = scene_jobs(recipe, pack)
    learner = under_way(model, jobs, recipe)
    count = counted(learner)
    rate, bandwidth = matrix_rate(device, torch.float32), copy_rate(device)
    step = best_of(learner.advance, seconds, device)
    again = matrix_rate(device, torch.float32)  # others' load comes and goes: the better of before and after
    rate = max(rate, again)
    return {
        "gflop_per_step": round(count.operations / 1e9, 2),
        "mb_per_step": round(count.fewest_bytes / 1e6, 1),
        "matrix_gflops": round(rate / 1e9, 1),
        "copy_gb_s": round(bandwidth / 1e9, 1),
        "step_s": round(step, 4),
        "shortest_possible_s": round(max(count.operations / rate, count.fewest_bytes / bandwidth), 4),
        "bound_by": "operations" if count.operations / rate > count.fewest_bytes / bandwidth else "bytes",
        "utilisation": round(count.operations / rate / step, 3),
        "pack": pack,
        "profile": profile(learner),
    }


KINDS = (
    ("convolution backwards", r"conv.*backward"),
    ("convolution forwards", r"conv"),
    ("attention backwards", r"attention.*backward"),
    ("attention forwards", r"attention"),
    ("matrix products", r"mm$|::linear"),
    ("normalisation", r"norm"),
    ("copies", r"copy|cat|clone|index|gather"),
    ("elementwise and the rest", r""),
)
"""(kind, pattern of its operators' names); the first that fits counts"""


def profile(learner: Learner, steps: int = 3) -> dict[str, float]:
    """Kind of operator -> its share of the processor time of some steps, largest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            learner.advance()
    times: Counter[str] = Counter()
    for event in seen.key_averages():
        kind = next(kind for kind, pattern in KINDS if re.search(pattern, event.key))
        times[kind] += event.self_cpu_time_total
    whole = sum(times.values())
    return {kind: round(time / whole, 3) for kind, time in times.most_common()}


SENTENCE = "a red <star> left of a blue <ring>"


class Compiled:
    """A compiled network for steps; everything else about it is asked of the network itself."""

    def __init__(self, network: nn.Module) -> None:
        self._network, self._call = network, torch.compile(network, dynamic=False)

    def __call__(self, *args, **kwargs):
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str):
        return getattr(self._network, name)


def random_jobs(model: BaseModel, count: int, recipe: Recipe) -> tuple[Job, ...]:
    """Jobs of random pictures: their content changes no time."""
    side, generator = model.facts.resolution, torch.Generator().manual_seed(0)
    return tuple(
        make_job(
            model, f"picture-{n}", parse(SENTENCE), torch.rand((3, side, side), generator=generator) * 2 - 1, recipe
        )
        for n in range(count)
    )


def gpu_case(model: BaseModel, pack: int, recipe: Recipe, seconds: float, rate: float, compiled: bool) -> dict:
    """One pack size of a base on its device: a step, and the stock U-Net's forward and input-backward of its rows.

    rate: operations per second of the device's best matrix product.
    """
    device, on_gpu = model.device, model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    jobs = random_jobs(model, pack, recipe)
    learner = under_way(model, jobs, recipe, steps=1)  # the first look reads maps, uncompiled
    count, network = counted(learner), model._unet
    rows = pack * recipe.batch
    noisy = torch.randn((rows, *model.facts.latent_shape), device=device, dtype=model.dtype)
    timesteps = torch.randint(0, 1000, (rows,), device=device)
    given = model.unconditional()
    hidden = given.hidden.expand(rows, -1, -1).clone().requires_grad_()
    extra = {name: value.expand(rows, *value.shape[1:]).clone() for name, value in given.extra.items()}

    def stock() -> None:
        prediction = model.predict(noisy, timesteps, type(given)(hidden, extra))
        torch.autograd.grad(prediction.float().square().mean(), hidden)

    started = time.monotonic()
    model._unet = Compiled(network) if compiled else network
    try:
        learner.advance()
        _wait(device)
        warm = time.monotonic() - started
        step = best_of(learner.advance, seconds, device)
        peak = torch.cuda.max_memory_allocated() if on_gpu else 0
        stock_step = best_of(stock, seconds, device)
    finally:
        model._unet = network
    return {
        "pack": pack, "rows": rows, "compiled": compiled, "first_step_s": round(warm, 1), "step_s": round(step, 5),
        "stock_unet_s": round(stock_step, 5), "of_stock": round(stock_step / step, 3),
        "utilisation": round(count.operations / rate / step, 3), "tflop_per_step": round(count.operations / 1e12, 3),
        "peak_gb": round(peak / 1e9, 2), "pictures_per_gpu_hour_200_steps": round(3600 * pack / (200 * step), 1),
    }  # fmt: skip


def gpu(bases: list[str], packs: list[int], compiled: list[int], seconds: float) -> dict | str:
    """Every base and pack size that fits; the case of best utilisation of each."""
    if not torch.cuda.is_available():
        return "not measured"
    from benchmarks.memory import full_size

    recipe, found = endless("paper"), {}
    rate = matrix_rate(torch.device("cuda"), torch.bfloat16)
    for base in bases:
        model, cases = full_size(base, "bfloat16", "cuda"), []
        for pack, whether in [*((k, False) for k in packs), *((k, True) for k in compiled)]:
            try:
                cases.append(gpu_case(model, pack, recipe, seconds, rate, whether))
            except torch.OutOfMemoryError:
                cases.append({"pack": pack, "compiled": whether, "error": "does not fit"})
            print(f"{base}: {json.dumps(cases[-1])}", flush=True)
            torch.cuda.empty_cache()
        fitting = [case for case in cases if "error" not in case]
        found[base] = {"device": torch.cuda.get_device_name(), "matrix_tflops": round(rate / 1e12, 1), "cases": cases}
        if fitting:
            found[base]["best"] = max(fitting, key=lambda case: case["utilisation"])
        del model
        torch.cuda.empty_cache()
    return found


def rehearsal(seconds: float) -> dict:
    """The second part's code on the small base and the CPU."""
    recipe = endless("paper")
    model, _ = scene_jobs(recipe, 1)
    return gpu_case(model, 1, recipe, seconds, matrix_rate(model.device, model.dtype), compiled=False)


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=int, default=8, help="pictures in the batch, of the small base")
    parser.add_argument("--recipe", default="paper")
    parser.add_argument("--seconds", type=float, default=8, help="to time each step for")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", choices=("both", "cpu", "gpu"), default="both", help="which of the two to run")
    parser.add_argument("--gpu-bases", default="sd15,sdxl")
    parser.add_argument("--gpu-packs", default="1,2,4,8,16")
    parser.add_argument("--gpu-compiled", default="8", help="packs that are learned with the U-Net compiled, too")
    parser.add_argument("--rehearse", action="store_true", help="run the second part's code on the CPU, small base")
    parser.add_argument("--write", type=Path, help="also keep the last line in this file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    first = None
    if given.part != "gpu":
        first = cpu(given.pack, endless(given.recipe), given.seconds)
        for name, value in first.items():
            print(f"{name}: {value}")
    second = (
        "not asked for"
        if given.part == "cpu"
        else (
            rehearsal(given.seconds)
            if given.rehearse
            else gpu(given.gpu_bases.split(","), numbers(given.gpu_packs), numbers(given.gpu_compiled), given.seconds)
        )
    )
    say({
        "ratio": first and first["utilisation"], "cpu": first, "gpu": second, "recipe": given.recipe,
    }, "benchmarks.roofline", given.write, *((BASE, JUDGE) if first else ()))  # fmt: skip


if __name__ == "__main__":
    with one_line("benchmarks.roofline"):
        main()
