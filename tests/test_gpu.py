"""What only a GPU can show: the same words as on a CPU, half precision, memory that runs out, steps that never wait."""

from __future__ import annotations

import pytest
import torch

from benchmarks import recipes as benchmark
from mcpl.config import Placement
from mcpl.evaluation.sampling import Sampling, Wish, generate, generate_all
from mcpl.learning.learner import Learner
from mcpl.models.catalogue import load
from mcpl.orchestration.job import Runner
from mcpl.prompts import parse
from mcpl.recipes import adjust
from mcpl.recipes import load as recipe
from mcpl.types import Pack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
SHORT = {"steps": 6, "probe_every": 3, "probe_timesteps": 2}


@pytest.fixture(scope="module")
def examples():
    return list(benchmark.examples("unnamed-2", "dev", 4))


@pytest.fixture(scope="module")
def there(tiny_base_dir):
    """The tiny base in float64, on the GPU."""
    return load(str(tiny_base_dir), precision="float64", device="cuda")


def rows(model, name, examples, **placed):
    own = adjust(recipe(name), **SHORT)
    return Runner(own, Placement(device=str(model.device), **placed), model)(examples)


def vectors(row):
    return torch.cat([word.vectors.cpu() for word in row.learned.concepts])


@pytest.mark.parametrize("name", ["paper", "combined"])
def test_a_gpu_learns_the_words_of_a_cpu_packed_or_alone(tiny, there, examples, name):
    before = there.state_digest()
    on_cpu, packed, alone = (
        rows(tiny, name, examples, pack=4, samples=1), rows(there, name, examples, pack=4, samples=1),
        rows(there, name, examples, pack=1),
    )  # fmt: skip
    for cpu, together, single in zip(on_cpu, packed, alone, strict=True):
        assert cpu.status == together.status == "learned" and cpu.metrics.keys() == together.metrics.keys()
        assert torch.allclose(vectors(cpu), vectors(together), atol=1e-7)
        assert torch.allclose(vectors(single), vectors(together), atol=1e-7)
    assert there.state_digest() == before, "the base is frozen"


@pytest.mark.parametrize("name", ["paper", "combined"])
def test_no_step_waits_for_the_device(there, examples, name):
    """Between two looks nothing is read back: the host runs ahead, and the device has work."""
    own = adjust(recipe(name), steps=20, probe_every=10, probe_timesteps=2)
    runner = Runner(own, Placement(device="cuda"), there)
    learner = Learner(there, Pack(tuple(map(runner.prepare, examples))), own)
    for _ in range(3):
        learner.advance()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            learner.advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns(examples, precision):
    """No number is lost, and the loss falls as it does in full precision."""

    def curve(precision):
        own = adjust(recipe("plain"), precision=precision, steps=60, lr=3e-3)
        (row, *_) = Runner(own, Placement(device="cuda"))(examples)
        assert row.status == "learned" and vectors(row).isfinite().all() and vectors(row).dtype == torch.float32
        return [point.fixed_noise_loss for point in row.learned.curve]

    half, full = curve(precision), curve("float32")
    assert half[-1] < half[0]
    assert half[-1] - half[0] == pytest.approx(full[-1] - full[0], rel=0.3)


def test_a_pack_that_does_not_fit_is_halved_until_it_does(there, examples):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    rows(there, "paper", examples[:1], pack=1)
    room = 1.6 * torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(0).total_memory
    whole = rows(there, "paper", examples, pack=4)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(room)
    try:
        tight = rows(there, "paper", examples, pack=4)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    for own, other in zip(tight, whole, strict=True):
        assert own.status == "learned" and torch.allclose(vectors(own), vectors(other), atol=1e-7)


def test_pack_auto_fits_what_it_chose(examples):
    """The probe's choice is learned without running out."""
    runner = Runner(adjust(recipe("paper"), **SHORT), Placement(device="cuda", pack="auto"))
    assert all(row.status == "learned" for row in runner(examples)) and runner.most >= len(examples)


def test_drawn_together_is_drawn_alone(there):
    wishes = [
        Wish(parse("a <star>"), {"star": torch.randn(1, there.facts.width, dtype=torch.float64)}, seed)
        for seed in range(5)
    ]
    sampling = Sampling(steps=4)
    for wish, own in zip(wishes, generate_all(there, wishes, 3, sampling), strict=True):
        alone = generate(there, wish.sentence, wish.vectors, 3, wish.seed, sampling)
        assert (own.int() - alone.int()).abs().max() <= 1
