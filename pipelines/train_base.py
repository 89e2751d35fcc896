#!/usr/bin/env python
"""Train the small base model: `vae`, `judge` and `unet` (the long part), then `export`, or `handover` to go on later.

python pipelines/train_base.py vae   --out runs/vae
python pipelines/train_base.py judge --out runs/judge.safetensors --vae runs/vae
python pipelines/train_base.py unet --out runs/base --workers 2 --minutes 100
python pipelines/train_base.py unet --out runs/base --late 0.25 --objects 0.05,0.9,0.05 --minutes 20   # layout
python pipelines/train_base.py unet --out runs/base --finish          # decay the learning rate in runs/base/finish
python pipelines/train_base.py unet --out runs/more --resume checkpoints/scenes-v1
touch runs/base/stop                                                  # or SIGTERM: saves and ends
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # workers keep this command's niceness
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two one-thread workers beat one with two threads


def unet(args: argparse.Namespace) -> None:
    """Ray Train: data-parallel workers, each running `mcpl.scenes.training.job.work`."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from mcpl.scenes.training.job import Job

    job = Job.from_options(vars(args))
    stop = job.folder / "stop"
    stop.unlink(missing_ok=True)
    if not ray.is_initialized():
        code = str(Path(__file__).resolve().parents[1])
        env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([code, os.environ.get("PYTHONPATH", "")])}
        address = os.environ.get("RAY_ADDRESS", "local")
        here = {"include_dashboard": False, "num_cpus": args.workers} if address == "local" else {}
        ray.init(address=address, runtime_env={"env_vars": env}, **here)
    signal.signal(signal.SIGTERM, lambda *_: stop.touch())  # after ray.init, which sets a handler that aborts
    TorchTrainer(
        _worker,
        train_loop_config={"job": job.model_dump_json()},
        scaling_config=ScalingConfig(num_workers=args.workers, use_gpu=args.gpu),
        run_config=RunConfig(
            name="train_base",
            storage_path=str(job.folder / "ray"),
            failure_config=FailureConfig(max_failures=3),  # a lost worker goes on from the folder's last save
        ),
    ).fit()


def _worker(config: dict) -> None:
    from ray import train

    from mcpl.scenes.training.job import Job, work

    context = train.get_context()
    work(Job.model_validate_json(config["job"]), rank=context.get_world_rank(), world=context.get_world_size())


def vae(args: argparse.Namespace) -> None:
    """The result is a folder of `AutoencoderKL`."""
    from mcpl.scenes.training.autoencoder import train_vae
    from mcpl.scenes.training.networks import Shape

    shape = Shape(pixels=args.pixels) if args.pixels else Shape()
    train_vae(shape, seed=args.seed, steps=args.steps).save_pretrained(args.out)


def judge(args: argparse.Namespace) -> None:
    """The result is one file of weights."""
    from mcpl.scenes.training.judging import train_judge

    made = {"vae": args.vae} if args.vae else {}
    train_judge(seed=args.seed, steps=args.steps, **made).save(args.out)


def export(args: argparse.Namespace) -> None:
    """the averaged weights as a folder that StableDiffusionPipeline loads"""
    from mcpl.scenes.training.export import export_run

    print(export_run(args.run_folder, args.vae, args.judge, args.out))


def handover(args: argparse.Namespace) -> None:
    """a small checkpoint that `unet --resume` goes on from"""
    from mcpl.scenes.training.job import resumed

    resumed(args.run_folder).hand_over(args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    _unet_options(commands)
    for stage, steps in ((vae, 1000), (judge, 1500)):
        command = commands.add_parser(stage.__name__, help=f"train the {stage.__name__}, some minutes on one core")
        command.set_defaults(run=stage)
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--steps", type=int, default=steps)
        command.add_argument("--seed", type=int, default=0)
        if stage is vae:
            command.add_argument("--pixels", type=int, help="side of a picture, a multiple of 32")
        else:
            command.add_argument("--vae", type=Path, help="whose round trips it sees through; the shipped one")
    for stage in (export, handover):
        command = commands.add_parser(stage.__name__, help=(stage.__doc__ or "").strip())
        command.set_defaults(run=stage)
        command.add_argument("--run", dest="run_folder", type=Path, required=True, help="directory of a `unet` run")
        command.add_argument("--out", type=Path, required=True)
        if stage is export:
            command.add_argument("--vae", type=Path, required=True)
            command.add_argument("--judge", type=Path, required=True)
    args = parser.parse_args()
    args.run(args)


def _unet_options(commands) -> None:
    command = commands.add_parser("unet", help="train U-Net and text encoder on analytic latents")
    command.set_defaults(run=unet)
    command.add_argument("--out", type=Path, required=True, help="run directory; goes on from what it holds")
    command.add_argument("--resume", type=Path, help="begin from this hand-over checkpoint")
    command.add_argument("--minutes", type=float, default=1e9)
    command.add_argument("--until", type=int, help="stop at this sample")
    command.add_argument("--finish", action="store_true", help="decay from the present sample, in OUT/finish")
    command.add_argument("--decay-from", type=int, help="sample at which the learning rate starts to fall")
    command.add_argument("--decay-samples", type=int)
    command.add_argument("--workers", type=int, default=2)
    command.add_argument("--gpu", action="store_true")
    command.add_argument("--pixels", type=int, help="side of a picture, a multiple of 32")
    command.add_argument("--channels", type=lambda text: tuple(map(int, text.split(","))), help="of the U-Net's levels")
    command.add_argument("--objects", type=lambda text: tuple(map(float, text.split(","))), help="shares of 1, 2, 3")
    command.add_argument("--rows", type=int, help="samples of a step, all workers together")
    command.add_argument("--lr", type=float)
    command.add_argument("--late", type=float, help="power of the uniform time; 1 meets all noise levels alike")
    command.add_argument("--ema", type=float, help="decay of the moving average, per step")
    command.add_argument("--seed", type=int)
    command.add_argument("--prediction", choices=("v_prediction", "epsilon"))
    command.add_argument("--schedule", choices=("squaredcos_cap_v2", "scaled_linear", "linear"), help="of the noise")
    command.add_argument("--drop-caption", type=float, help="share of samples without a caption")
    command.add_argument("--reading-steps", type=int, help="steps of the text encoder alone, before the first sample")


if __name__ == "__main__":
    main()
