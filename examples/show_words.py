# %% [markdown]
# # What does each word look at?
#
# Cross-attention of every word of a sentence, learned or ordinary, on a real picture: as overlays, as masks, as one
# label for each pixel, and over the time steps.

# %%
import os
from pathlib import Path

import mcpl
from mcpl.data.sources import scenes

STEPS = int(os.environ.get("EXAMPLE_STEPS", 100))  # the test of this file takes fewer
OUT = Path(os.environ.get("EXAMPLE_OUT", "shown/example"))

# %%
[scene] = scenes(1, seed=3)
learned = mcpl.learn(scene.image, scene.text, steps=STEPS, samples=0)

# %% [markdown]
# `words` may be what `learn` gave, a bank, a folder of `mcpl learn`, word files, or `models:/NAME@alias`.

# %%
looks = mcpl.show(scene.image, scene.text, learned)
looks

# %% [markdown]
# The same as arrays. Masks are cut from maps that were spread along the picture's self-attention; labels give each
# pixel to the strongest of the objects' words.

# %%
print(looks.words)
print(looks.maps.shape, looks.masks.shape, looks.labels.shape)
for w in looks.segmented:
    print(looks.words[w], f"{looks.masks[w].mean():.0%} of the picture")

# %% [markdown]
# No learned word is needed: ordinary sentences can be looked at too.

# %%
mcpl.show(scene.image, "a shape on a ground", timesteps=4)

# %%
looks.save(OUT)
print(sorted(str(path.relative_to(OUT)) for path in OUT.rglob("*.png")))
