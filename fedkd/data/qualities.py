"""Qualities of images: size, JPEG, blur and bit depth, and noise for any kind of view.

Each is a pure function from rows ``(N, ...)`` to as many rows, and no row depends on the others.
"""

import hashlib
import io
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from fedkd import seeding

Bytes = NDArray[np.uint8]

_BYTE_MAX = 255
_TRUNCATE = 4.0  # standard deviations after which a Gaussian counts as zero, as in scipy.ndimage


def resized(images: Tensor, size: int) -> Tensor:
    """Return square images ``(N, C, size, size)``, by an antialiased bilinear filter.

    Each pixel then covers the area that a camera of that resolution would have seen.
    """
    return interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Return images ``(N, C, H, W)`` in [0, 1] as they come back from JPEG files of a quality, 1 to 95.

    Values are clipped to [0, 1] and rounded to bytes first. One channel is a grey file, three are a colour file, with
    Pillow's defaults (colours at half the resolution). Other versions of its decoder may differ by a grey level.
    """
    array = images.clamp(0, 1).mul(_BYTE_MAX).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    decoded = np.stack([_through_a_file(image, quality) for image in array])
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).contiguous().float().div_(_BYTE_MAX)


def _through_a_file(image: np.ndarray, quality: int) -> np.ndarray:
    """Encode and decode one image, uint8, shape ``(H, W, C)``."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image if image.shape[-1] > 1 else image[..., 0]).save(file, "JPEG", quality=quality)
    with Image.open(file) as decoded:
        return np.asarray(decoded).reshape(image.shape)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Return images ``(N, C, H, W)`` under a Gaussian filter of this standard deviation in pixels.

    Beyond its edge, an image is taken to go on with the edge's value. Computed in float64, so that the rounded result
    hardly depends on how a processor orders its sums.
    """
    rows, columns = (_gaussian(side, sigma) for side in images.shape[2:])
    return (rows @ images.double() @ columns.T).float()


def _gaussian(side: int, sigma: float) -> Tensor:
    """Return the filter along one axis as a matrix, float64, shape ``(side, side)``."""
    reach = math.floor(_TRUNCATE * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    sources = (torch.arange(side)[:, None] + offsets).clamp(0, side - 1)
    return torch.zeros(side, side, dtype=torch.float64).scatter_add(
        1, sources, (weights / weights.sum()).expand(side, -1)
    )


def quantised(images: Tensor, bits: int) -> Tensor:
    """Return images in [0, 1] rounded to the nearest of ``2 ** bits`` evenly spaced levels, 0 and 1 among them.

    Values are clipped to [0, 1] first; halfway between two levels, the one of even number is taken.
    """
    steps = 2**bits - 1
    return images.clamp(0, 1).mul(steps).round().div(steps)


def noisy(values: Tensor, deviation: float, purpose: str) -> Tensor:
    """Return rows ``(N, ...)`` with Gaussian noise of this standard deviation added; the sum is not clipped.

    A row's content and the purpose, any text, alone decide its noise: so equal rows have equal noise.
    """
    rows = values.contiguous()  # its place in memory decides where in a row a random number goes
    noise = torch.empty_like(rows)
    for row, into in zip(rows, noise, strict=True):
        content = hashlib.sha256(row.numpy().tobytes()).hexdigest()
        into.normal_(generator=seeding.generator(0, "noise", purpose, content))
    return rows + deviation * noise
