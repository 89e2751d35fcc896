"""A small dataset, an output and a stub's folder: what each test of the fan-out starts from."""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mcpl.config import Placement, Recipe, RunConfig
from mcpl.data.bank import COMPARED_COLUMNS, Bank, members
from mcpl.data.schema import DATASET
from mcpl.data.storage import open_store
from mcpl.orchestration import fanout
from tests.orchestration import stub


def picture(number: int) -> bytes:
    """A small PNG, another one for each number."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 128)).save(buffer, "PNG")
    return buffer.getvalue()


def eventually(true: Callable[[], object], seconds: float = 20, what: str = "") -> None:
    """Wait until `true()`; an AssertionError naming `what` after so many seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@dataclass(frozen=True)
class Scenario:
    root: Path

    @property
    def stub_folder(self) -> Path:
        return self.root / "stub"

    def pictures(self, count: int, start: int = 0, row_group: int = 8) -> Path:
        """Add `count` rows as one more Parquet file of the dataset."""
        folder = self.root / "dataset"
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "image": {"bytes": picture(i), "path": f"{i}.png"},
                "image_id": f"p{i:04d}",
                "text": "a brown <bear> on a rolling <board>",
                "masks": [],
                "truth": None,
            }
            for i in range(start, start + count)
        ]
        table = pa.Table.from_pylist(rows, DATASET)
        pq.write_table(table, folder / f"part-{start:05d}.parquet", row_group_size=row_group)
        return folder

    def tell(self, **settings: object) -> None:
        """Tell the stub what to do; replaces what it was told before."""
        self.stub_folder.mkdir(parents=True, exist_ok=True)
        new = self.stub_folder / "new-settings.json"
        new.write_text(json.dumps(settings))
        new.replace(self.stub_folder / "settings.json")  # whole, for runners at work

    def config(self, output: str = "bank", steps: int = 5, **placement: object) -> RunConfig:
        self.stub_folder.mkdir(parents=True, exist_ok=True)
        return RunConfig(
            dataset=str(self.root / "dataset"),
            output=self.uri(output),
            recipe=Recipe(name="test", base=str(self.stub_folder), steps=steps),
            placement=Placement(**{"shard_size": 4, "workers": 1, **placement}),
        )

    def uri(self, output: str) -> str:
        return output if "://" in output else str(self.root / output)

    def run(self, config: RunConfig, **how: object) -> fanout.RunSummary:
        return fanout.run(config, stub.NAME, **{"inline": True, **how})

    def times_learned(self) -> Counter[str]:
        """id -> how often the stub did its work, committed or not"""
        return Counter(path.name.rpartition(".")[0] for path in (self.stub_folder / "learned").iterdir())

    def pids(self) -> set[int]:
        return {int(path.name.removeprefix("pid-")) for path in self.stub_folder.glob("pid-*")}

    def compared(self, output: str = "bank") -> pa.Table:
        """The bank's rows without where and when, by id; every row of every file that counts, so doubles show."""
        store = open_store(self.uri(output))
        files = [io.BytesIO(store.get(entry.name)) for entry in members(store)]
        table = pa.concat_tables(pq.read_table(file, columns=list(COMPARED_COLUMNS)) for file in files)
        assert len(table) == len(Bank.open(store.uri))
        return table.sort_by("id")

    def arguments(self, output: str = "bank") -> list[str]:
        """The options with which pipelines/train_all.py does what `run` does."""
        config = self.config(output)
        recipe = self.root / "test.yaml"
        recipe.write_text(f"base: {self.stub_folder}\nsteps: {config.recipe.steps}\n")
        placed = {"--dataset": config.dataset, "--output": config.output, "--recipe": recipe, "--shard-size": 4}
        return [str(word) for pair in placed.items() for word in pair] + ["--runner", stub.NAME]
