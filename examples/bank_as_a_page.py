# %% [markdown]
# # A dataset, its bank, and the bank as a page
#
# The programs behind `pipelines/train_all.py` and `mcpl report`, called from Python: learn a few scenes in this
# process, look words up, and write a page that opens in any browser without a network.

# %%
import os
from pathlib import Path

from mcpl.config import Placement
from mcpl.data.bank import Bank, encode, part_name
from mcpl.data.sources import scenes, write_dataset
from mcpl.data.storage import open_store
from mcpl.orchestration.job import Runner
from mcpl.orchestration.reporting import write_report
from mcpl.recipes import adjust, load

STEPS = int(os.environ.get("EXAMPLE_STEPS", 100))  # the test of this file takes fewer
OUT = Path(os.environ.get("EXAMPLE_OUT", "runs/example"))

# %%
examples = list(scenes(3, seed=5))
write_dataset(examples, OUT / "dataset")

# %% [markdown]
# Three pictures share every U-Net batch here, and none of them can tell: each learns what it would learn alone.

# %%
runner = Runner(adjust(load("best"), steps=STEPS), Placement(pack=3))
rows = runner(examples)
open_store(OUT / "bank").put(part_name(0), encode(rows))

# %%
bank = Bank.open(OUT / "bank")
for hit in bank.search("*"):
    print(hit.slug, "of", hit.id, f"length {hit.norm:.2f}")

# %%
print(write_report(str(OUT / "bank"), str(OUT / "dataset"), str(OUT / "page")))
print("open", OUT / "page" / "index.html")
