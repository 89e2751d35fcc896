"""Run diffusers' own `textual_inversion.py`, given by its path, on a machine without torchvision.

    python -m benchmarks.diffusers_script PATH/textual_inversion.py --pretrained_model_name_or_path DIR ...

The script is not part of diffusers' package and not of this project: take it from diffusers' repository
(examples/textual_inversion), at or near the version that is installed, and install accelerate beside it. Of
torchvision it uses one class, a random mirror, which is given here where the package is missing.
"""

from __future__ import annotations

import random
import runpy
import sys
from types import ModuleType

from PIL import Image, ImageOps


class RandomHorizontalFlip:
    """torchvision's: mirrors a picture with probability p."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, picture: Image.Image) -> Image.Image:
        return ImageOps.mirror(picture) if random.random() < self.p else picture


def main() -> None:
    """Everything that asks whether torchvision is installed is imported before the stand-in is there."""
    import diffusers.utils
    import transformers

    assert transformers.CLIPTextModel and diffusers.UNet2DConditionModel  # both packages import on first use
    if "torchvision" not in sys.modules:
        torchvision, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
        transforms.RandomHorizontalFlip = RandomHorizontalFlip
        torchvision.transforms = transforms
        sys.modules |= {"torchvision": torchvision, "torchvision.transforms": transforms}
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
