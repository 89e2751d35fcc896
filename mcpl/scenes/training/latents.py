"""The analytic code that the autoencoder's latents are tied to.

Each 2x2 patch of a picture becomes 4 numbers: the mean luma, two mean colour differences, and the luma difference
along one diagonal, each moved and scaled to the world's statistics. Trained freely, an autoencoder this small loses
the colours; tied to the code it does not, and the U-Net can train on the code before the autoencoder exists.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

# mean and spread over 4,096 training scenes (`python -m mcpl.scenes.training.latents` prints them); the diagonal's
# is doubled, so that this sparse detail weighs a quarter of a colour in the denoising loss
CENTRE = (-0.047, 0.110, -0.024, 0.0)
SPREAD = (0.616, 0.544, 0.314, 0.356)


def pictures_to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def tensor_to_pictures(tensor: torch.Tensor) -> np.ndarray:
    """float [B, 3, H, W] in -1..1 to uint8 [B, H, W, 3]."""
    return ((tensor.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def raw_code(pictures: torch.Tensor) -> torch.Tensor:
    """The code before it is moved and scaled: [B, 3, 2h, 2w] to [B, 4, h, w]."""
    red, green, blue = F.avg_pool2d(pictures, 2).unbind(1)
    luma = pictures.mean(1)
    diagonal = luma[:, ::2, ::2] - luma[:, 1::2, 1::2]
    return torch.stack([(red + green + blue) / 3, red - blue, green - (red + blue) / 2, diagonal], 1)


def encode(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, 2h, 2w] in -1..1 to latents [B, 4, h, w]."""
    shift, scale = (pictures.new_tensor(each).view(1, -1, 1, 1) for each in (CENTRE, SPREAD))
    return (raw_code(pictures) - shift) / scale


def decode(latents: torch.Tensor) -> torch.Tensor:
    """The picture that the code tells without its neighbours' help, [B, 4, h, w] to [B, 3, 2h, 2w] in -1..1."""
    shift, scale = (latents.new_tensor(each).view(1, -1, 1, 1) for each in (CENTRE, SPREAD))
    luma, red_blue, green_excess, diagonal = (latents * scale + shift).unbind(1)
    green = luma + green_excess * 2 / 3
    red = (3 * luma - green + red_blue) / 2
    flat = F.interpolate(torch.stack([red, green, red - red_blue], 1), scale_factor=2)
    flat[:, :, ::2, ::2] += diagonal[:, None] / 2
    flat[:, :, 1::2, 1::2] -= diagonal[:, None] / 2
    return flat


if __name__ == "__main__":
    from mcpl.scenes.render import render
    from mcpl.scenes.scene import sample_scene

    code = raw_code(pictures_to_tensor(np.stack([render(sample_scene([0, i]))[0] for i in range(4096)])))
    print(code.mean((0, 2, 3)), code.std((0, 2, 3)))
