# %% [markdown]
# # Learn the objects of one picture as words
#
# A picture, a sentence with its `<marked>` words, and some minutes. Everything here works offline, on the small base
# that comes with mcpl; for photographs give `base="sd15"` or the directory of a checkpoint in diffusers' layout.

# %%
import os

import mcpl

STEPS = int(os.environ.get("EXAMPLE_STEPS", 100))  # the test of this file takes fewer

# %% [markdown]
# The picture may be a path, a PIL picture, an array or bytes. This one is rendered; the base was never told the names
# of its shapes.

# %%
from mcpl.data.sources import scenes

[scene] = scenes(1, seed=3)
print(scene.text)

# %%
learned = mcpl.learn(scene.image, scene.text, steps=STEPS, samples=2)
learned  # shows its sheet: where each word looks, and what it draws

# %% [markdown]
# The vectors are yours, and so are the scores. `save` writes what `mcpl learn` writes: a word file for each word, which
# diffusers' `load_textual_inversion` takes, the sheet, and a bank of one row.

# %%
for word, vectors in learned.vectors.items():
    print(word, tuple(vectors.shape))
print(learned.metrics)

# %%
folder = learned.save(os.environ.get("EXAMPLE_OUT", "learned/example"))
print(sorted(path.name for path in folder.iterdir()))
