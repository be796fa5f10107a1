"""A colour scale for values in [0, 1] that stays readable without colour."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Ends of the scale in OKLab, dark blue and bright yellow. The straight line between them has equal steps of lightness
# and of perceived difference, passes through grey in the middle (1/2, the threshold), and is blue on one side and
# yellow on the other, which all common kinds of colour blindness tell apart.
DARKEST, BRIGHTEST = (0.28, -0.02, -0.13), (0.92, -0.03, 0.15)

# From OKLab to linear sRGB: Ottosson, "A perceptual color space for image processing", 2020
_LAB_TO_LMS = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_LMS_TO_RGB = np.array([
    [4.0767416621, -3.3077115913, 0.2309699292],
    [-1.2684380046, 2.6097574011, -0.3413193965],
    [-0.0041960863, -0.7034186147, 1.7076147010],
])  # fmt: skip


@cache
def colour_scale() -> NDArray[np.uint8]:
    """The colours of 0, 1/255, ... 1, as ``(256, 3)`` sRGB values."""
    share = np.linspace(0, 1, 256)[:, None]
    lab = (1 - share) * np.array(DARKEST) + share * np.array(BRIGHTEST)
    linear = ((lab @ _LAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (255 * srgb).round().astype(np.uint8)


def coloured(values: Image.Image) -> Image.Image:
    """Colour an 8-bit image (mode ``L``), of which 255 stands for 1."""
    image = values.copy()
    image.putpalette(colour_scale().tobytes())
    return image.convert("RGB")
