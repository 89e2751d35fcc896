"""Is the small base good enough to rest claims on? Generate, judge twice, and say with 95 % intervals.

    python -m benchmarks.base_gates [--prompts 500] [--base DIR] [--write gates.json] [--raw verdicts.parquet]
                                    [--page docs/base]

Half of the prompts ask for one object and half for two, named shapes in combinations that were drawn in training; all
traits are told, and noise is fixed by the prompt's number. The last line is one JSON object, the trained judge's
verdicts first:

    shape, colour, count, relation   share of pictures that show every asked shape; colour; so many objects; the side
    attention_iou                    16x16 cross-attention of each noun against its true mask, on noised renders: mean
                                     over layers, heads and 10 stratified time steps, divided by its maximum, over .5;
                                     n objects, the interval resamples their scenes
    judge                            share of fresh renders that the judge reads without a mistake
    vae_psnr                         dB of a render's round trip through the autoencoder
    all_right_1, all_right_2         share with everything right and nothing else, one and two objects apart
    shape_1, shape_2, ...            shape, colour, count for one and two objects apart (a relation always has two)
    judge_round_trip                 as judge, on renders that went through the autoencoder
    second_judge, second_judge_...   the same of the second judge: it shares no weights and no learning with the first;
                                     both use the world's outlines and the same comparison (`matches`)
    second_shape, second_...         the second judge's verdicts on the same generated pictures
    agreement                        share of the generated pictures that both judges call right, or both wrong
    agreement_1, agreement_2         the same for one and two objects apart
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from PIL import Image

from benchmarks.contact_sheet import Cell, contact_sheet
from benchmarks.drawing import GUIDANCE, ROWS, STEPS, draw, interval, judge_of, open_base
from benchmarks.provenance import provenance
from mcpl.diffusion import add_noise
from mcpl.models.cross_attention import record
from mcpl.scenes.grammar import caption
from mcpl.scenes.judge import WEIGHTS, Judge, Reading, Verdict, matches
from mcpl.scenes.render import render
from mcpl.scenes.scene import Scene, sample_scene
from mcpl.scenes.second_judge import TemplateJudge
from mcpl.scenes.training.autoencoder import psnr, round_trip
from mcpl.scenes.training.latents import pictures_to_tensor, tensor_to_pictures
from mcpl.scenes.world import SHAPES, SIZES, shapes

SEED = 20_000  # of the prompts; far from training's
TIMES = 10  # stratified time steps of an attention map
CELLS = 48  # pictures of a sheet
RENDERS, ROUND_TRIPS = 1000, 500  # what the judges themselves are measured on
JUDGES = ("judge", "second_judge")


@dataclass(frozen=True)
class Sample:
    """A generated picture, uint8 [H, W, 3], and for each of `JUDGES` what it sees and its verdict."""

    scene: Scene
    picture: np.ndarray
    readings: tuple[Reading, Reading]
    verdicts: tuple[Verdict, Verdict]


def gate_scenes(count: int) -> list[Scene]:
    """The standing prompts: one and two objects in turn."""
    return [sample_scene([SEED, i], objects=1 + i % 2, pool=shapes("named")) for i in range(count)]


@torch.no_grad()
def attention_iou(pipe: StableDiffusionPipeline, scenes: list[Scene]) -> list[list[float]]:
    """Intersection over union of each told noun's attention with its object's visible mask: scenes of objects."""
    keep = pipe.scheduler.alphas_cumprod
    side = pipe.unet.config.sample_size
    values: list[list[float]] = []
    for number, scene in enumerate(scenes):
        random = torch.Generator().manual_seed(SEED + number)
        picture, masks = render(scene, 2 * side // 32)
        ids = pipe.tokenizer([caption(scene)], padding="max_length", return_tensors="pt").input_ids
        nouns = pipe.tokenizer.convert_tokens_to_ids([f"{item.shape}</w>" for item in scene.objects])
        positions = torch.tensor([ids[0].tolist().index(token) for token in nouns]).expand(TIMES, -1)
        clean = pipe.vae.encode(pictures_to_tensor(picture[None])).latent_dist.mode() * pipe.vae.config.scaling_factor
        clean = clean.expand(TIMES, -1, -1, -1)
        at = ((torch.arange(TIMES) + torch.rand(TIMES, generator=random)) / TIMES * len(keep)).long()
        noisy = add_noise(clean, torch.randn(clean.shape, generator=random), at, keep)
        told = pipe.text_encoder(input_ids=ids).last_hidden_state.expand(TIMES, -1, -1)
        with record(pipe.unet, positions, side) as recording:
            pipe.unet(noisy, at, told)
        maps = recording.maps().mean(0)
        found = maps / maps.amax((1, 2), keepdim=True) >= 0.5
        true = F.avg_pool2d(torch.from_numpy(masks).float()[None], masks.shape[-1] // side)[0] >= 0.5
        values.append(((found & true).sum((1, 2)) / (found | true).sum((1, 2))).tolist())
    return values


def scenes_interval(values: Sequence[Sequence[float]]) -> dict[str, float | int]:
    """Mean over all objects; its interval resamples scenes, because the objects of one scene hang together."""
    pairs = [(number, value) for number, each in enumerate(values) for value in each]
    return interval([value for _, value in pairs], clusters=[number for number, _ in pairs])


def judged(judge: Judge, scenes: list[Scene], pictures: np.ndarray) -> list[Sample]:
    """Both judges' words on pictures that were asked to show `scenes`."""
    readings = zip(*(each.read(pictures) for each in (judge, TemplateJudge())), strict=True)
    return [
        Sample(scene, picture, said, tuple(matches(reading, scene) for reading in said))
        for scene, picture, said in zip(scenes, pictures, readings, strict=True)
    ]


def judges_gates(pipe: StableDiffusionPipeline, judge: Judge) -> dict[str, dict]:
    """How good the judges and the autoencoder are themselves, on renders that nobody has seen."""
    most = max(SIZES)
    scenes = [
        sample_scene([SEED + 1, i], objects=1 + i % most, pool=tuple(SHAPES), held_out=None) for i in range(RENDERS)
    ]
    pictures = np.stack([render(scene)[0] for scene in scenes])
    told = pictures_to_tensor(pictures[:ROUND_TRIPS])
    again = torch.cat([round_trip(pipe.vae, rows) for rows in told.split(ROWS)])
    gates = {"vae_psnr": interval(psnr(told, again).tolist())}
    for name, shown in (("", pictures), ("_round_trip", tensor_to_pictures(again))):
        samples = judged(judge, scenes[: len(shown)], shown)
        for number, who in enumerate(JUDGES):
            gates[who + name] = interval([sample.verdicts[number].right for sample in samples])
    return gates


def pictures_gates(samples: Sequence[Sample]) -> dict[str, dict]:
    """The gates of generated pictures, by both judges."""

    def share(number: int, trait: str, objects: int | None = None) -> dict:
        verdicts = [s.verdicts[number] for s in samples if objects in (None, len(s.scene.objects))]
        return interval([value for v in verdicts if (value := getattr(v, trait)) is not None])

    def both(objects: int | None = None) -> dict:
        chosen = [s for s in samples if objects in (None, len(s.scene.objects))]
        return interval([s.verdicts[0].right == s.verdicts[1].right for s in chosen])

    gates = {}
    for number, prefix in enumerate(("", "second_")):
        gates |= {f"{prefix}{trait}": share(number, trait) for trait in ("shape", "colour", "count", "relation")}
        for objects in (1, 2):
            traits = {"shape": "shape", "colour": "colour", "count": "count", "all_right": "right"}
            gates |= {f"{prefix}{name}_{objects}": share(number, trait, objects) for name, trait in traits.items()}
    return gates | {"agreement": both(), "agreement_1": both(1), "agreement_2": both(2)}


FIRST = ("shape", "colour", "count", "relation", "attention_iou", "judge", "vae_psnr", "all_right_1", "all_right_2")


def measure(
    base: Path, prompts: int, *, steps: int = STEPS, guidance: float = GUIDANCE
) -> tuple[dict[str, dict], list[Sample]]:
    """Every gate of the base in `base`, each with its interval, and the pictures that they were measured on."""
    pipe, judge = open_base(base)
    scenes = gate_scenes(prompts)
    drawn = draw(pipe, [caption(scene) for scene in scenes], seed=SEED, steps=steps, guidance=guidance)
    samples = judged(judge, scenes, drawn)
    gates = pictures_gates(samples) | judges_gates(pipe, judge)
    gates["attention_iou"] = scenes_interval(attention_iou(pipe, scenes))
    return {name: gates[name] for name in (*FIRST, *(key for key in gates if key not in FIRST))}, samples


def save_raw(samples: Sequence[Sample], path: Path) -> None:
    """Parquet, a row a picture: number, prompt, scene, the picture as PNG, and each judge's verdict and objects."""
    rows = []
    for number, sample in enumerate(samples):
        stored = io.BytesIO()
        Image.fromarray(sample.picture).save(stored, "PNG")
        said = {
            judge: {**asdict(verdict), "objects": [asdict(item) for item in reading.objects]}
            for judge, verdict, reading in zip(JUDGES, sample.verdicts, sample.readings, strict=True)
        }
        image = {"bytes": stored.getvalue(), "path": f"{number:04}.png"}
        rows.append(
            {"number": number, "prompt": caption(sample.scene), "truth": sample.scene.to_json(), "image": image, **said}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def wrong(verdict: Verdict) -> str:
    """What a verdict holds against a picture, "right" where that is nothing."""
    if verdict.right:
        return "right"
    faults = [name for name in ("shape", "colour", "texture", "count", "relation") if getattr(verdict, name) is False]
    return "wrong: " + (", ".join(faults) or "on other objects")


def save_page(samples: Sequence[Sample], gates: dict[str, dict], origin: dict, folder: Path) -> None:
    """A page (README.md) of every prompt, picture and verdict, as sheets of `CELLS`, and the gates' table."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("sheet-*.png"):
        old.unlink()
    names = []
    for first in range(0, len(samples), CELLS):
        cells = [
            Cell(
                sample.picture,
                f"{number}. {caption(sample.scene)}",
                [(v.right, f"{who} {wrong(v)}") for who, v in zip(("1st", "2nd"), sample.verdicts, strict=True)],
            )
            for number, sample in enumerate(samples[first : first + CELLS], first)
        ]
        names.append(f"sheet-{first // CELLS + 1:02}.png")
        contact_sheet(cells, folder / names[-1], columns=8, zoom=4)
    lines = [
        "# What the base draws",
        "",
        f"`{origin['command']}`, base `{origin['base_digest']}`, code `{origin['commit']}`, "
        f"{origin['hardware']['cpu']}, torch {origin['hardware']['torch']}.",
        "",
        "Prompts and noise are fixed by their numbers, and none is left out. Under each picture stand its prompt and "
        "the verdicts of the two judges, a tick for right, a cross and the reasons for wrong. The second judge "
        "shares no weights and no learning with the first; both use the world's outlines and the same comparison "
        "(`matches`). The gates, with 95 % intervals:",
        "",
        "| gate | mean | interval | n |",
        "|---|---|---|---|",
        *(f"| {name} | {g['mean']:.3f} | {g['low']:.3f} - {g['high']:.3f} | {g['n']} |" for name, g in gates.items()),
        "",
    ]
    for number, name in enumerate(names):
        last = min(len(samples), (number + 1) * CELLS) - 1
        lines += [f"## Prompts {number * CELLS} to {last}", "", f"![Prompts {number * CELLS} to {last}]({name})", ""]
    (folder / "README.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=WEIGHTS.parent)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--write", type=Path, metavar="FILE", help="save the gates and where they come from as JSON")
    parser.add_argument("--raw", type=Path, metavar="FILE", help="save every picture and both verdicts as Parquet")
    parser.add_argument("--page", type=Path, metavar="DIR", help="save a page of every picture and both verdicts")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started = time.monotonic()
    gates, samples = measure(args.base, args.prompts, steps=args.steps, guidance=args.guidance)
    seconds = round(time.monotonic() - started)
    origin = provenance("benchmarks.base_gates", args.base, judge_of(args.base))
    if args.write:
        settings = {"prompts": args.prompts, "steps": args.steps, "guidance": args.guidance, "seconds": seconds}
        seeds = {"prompts": SEED, "noise": SEED, "renders": SEED + 1, "bootstrap": 0}
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(json.dumps({**origin, **settings, "seeds": seeds, "gates": gates}, indent=1) + "\n")
    if args.raw:
        save_raw(samples, args.raw)
    if args.page:
        save_page(samples, gates, origin, args.page)
    print(f"{args.base}, {args.prompts} prompts, {args.steps} steps, guidance {args.guidance}, {seconds} s")
    for name, value in gates.items():
        print(f"{name:24} {value['mean']:7.3f}  [{value['low']:.3f}, {value['high']:.3f}]  n={value['n']}")
    print(json.dumps(gates))


if __name__ == "__main__":
    main()
