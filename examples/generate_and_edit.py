# %% [markdown]
# # New pictures of learned words, and edits with them
#
# Learn two words from one picture, draw them in other sentences, and exchange one of them in the picture itself.

# %%
import os
from pathlib import Path

import mcpl
from mcpl.data.sources import scenes

STEPS = int(os.environ.get("EXAMPLE_STEPS", 100))  # the test of this file takes fewer
OUT = Path(os.environ.get("EXAMPLE_OUT", "generated/example"))

# %%
[scene] = scenes(1, seed=3)
learned = mcpl.learn(scene.image, scene.text, steps=STEPS, samples=0)
first, *others = learned.vectors
print(scene.text)

# %% [markdown]
# One learned word alone, on another ground. Each picture follows from its seed.

# %%
drawn = mcpl.generate(f"a green <{first}> on a white ground", learned, n=4, seed=0)
drawn

# %% [markdown]
# An edit of the real picture: a learned word is exchanged for an ordinary one. The change shows only where they look.

# %%
edited = mcpl.edit(scene.image, scene.text, learned, replace={f"<{first}>": "disc"})
edited

# %%
drawn.save(OUT)
edited.save(OUT)
print(sorted(path.name for path in OUT.iterdir()))
