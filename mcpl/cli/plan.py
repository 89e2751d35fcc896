"""What a dataset would take, before a cluster is paid for."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from mcpl.cli.terminal import Device, Model, Words, adjusted_recipe, console
from mcpl.errors import ConfigError
from mcpl.settings import DEFAULT_RECIPE


def plan(
    uri: Annotated[str, typer.Argument(help="Dataset: path or URI.")],
    recipe: Annotated[str, typer.Option(help="Recipe name or YAML file.")] = DEFAULT_RECIPE,
    model: Model = None,
    words: Words = None,
    steps: Annotated[int | None, typer.Option(help="Optimisation steps.")] = None,
    pictures: Annotated[int, typer.Option(min=1, help="How many to learn at least; packs stay whole.")] = 4,
    pack: Annotated[str, typer.Option(help="Pictures that share a U-Net batch; auto: what the device holds.")] = "4",
    shard_size: Annotated[int, typer.Option(min=1, help="Pictures committed together.")] = 16,
    samples: Annotated[int, typer.Option(min=0, help="Pictures drawn from each word to score it.")] = 0,
    device: Device = "auto",
    gpus_per_worker: Annotated[float, typer.Option(min=0, help="May be a fraction, where workers share one.")] = 1,
    threads: Annotated[int | None, typer.Option(help="CPU threads of a worker.")] = None,
    vram: Annotated[int | None, typer.Option(help="GB of the device: 8, 12 or 24; changes the precision.")] = None,
    workers: Annotated[str, typer.Option(help="Numbers of workers to reckon with.")] = "1,2,4,8,16,32,64",
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON instead of a table.")] = False,
) -> None:
    """Learn a few pictures on this machine; print time, GPU-hours and storage for the whole set."""
    from mcpl.config import Placement, fitted, pack_size, parse
    from mcpl.orchestration.estimate import estimate

    counts = workers.replace(" ", "").split(",")
    if not all(count.isdecimal() and int(count) for count in counts):
        raise ConfigError(f"--workers {workers}: give numbers of workers, such as 1,8,64")
    placement = {
        "pack": pack_size(pack),
        "shard_size": shard_size,
        "samples": samples,
        "device": device,
        "gpus_per_worker": gpus_per_worker,
        "threads": threads,
    }
    chosen = adjusted_recipe(recipe, base=model, words=words, steps=steps)
    chosen, placed = fitted(chosen, parse(Placement, placement, "options"), vram)
    found = estimate(uri, chosen, placed, pictures, sorted(map(int, counts)))
    if as_json:
        print(json.dumps(found.plain()))
    else:
        _show(found)


def _show(found) -> None:
    from mcpl.data.storage import byte_size
    from mcpl.orchestration.progress import duration

    measured = found.measured
    console.print(
        f"{found.rows} pictures in {found.dataset}\n"
        f"{measured.pictures} learned here, {measured.pack} at a time: {measured.seconds_per_picture:.3g} s "
        f"and {byte_size(measured.bytes_per_picture)} each on {measured.device}, "
        f"{measured.load_seconds:.1f} s for the base",
        highlight=False,
    )
    if measured.failed:
        console.print(f"[yellow]{measured.failed} of them gave no words: mcpl dataset validate", highlight=False)
    table = Table("workers", "time", "GPU-hours" if measured.on_gpu else "core-hours")
    for column in table.columns:
        column.justify = "right"
    for each in found.estimates:
        table.add_row(str(each.workers), duration(3600 * each.hours), f"{each.device_hours:.3g}")
    console.print(table)
    console.print(
        f"storage: {byte_size(found.bank_bytes)} in {found.parts} parts of {found.shard_size} pictures, "
        f"about {found.files} files when compacted\n"
        "Workers that share cores or a GPU slow each other down: measure with as many as will share one.",
        highlight=False,
    )
