"""Qualities of images, each against Pillow, SciPy or numbers made by hand."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from fedkd.data import qualities


def picture(*shape: int) -> torch.Tensor:
    """Images between black and white, smooth enough for JPEG to make sense of them."""
    raw = np.random.default_rng(0).random(shape)
    smooth = ndimage.gaussian_filter(raw, (0, 0, 2, 2))
    return torch.tensor((smooth - smooth.min()) / np.ptp(smooth), dtype=torch.float32)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("quality", [1, 30, 95])
def test_jpeg_is_pillows(channels: int, mode: str, quality: int) -> None:
    images = picture(3, channels, 17, 24)
    found = qualities.jpeg(images, quality)
    assert found.dtype == torch.float32
    for image, back in zip(images.numpy(), found, strict=True):
        file = io.BytesIO()
        pixels = np.rint(image.astype(np.float64) * 255).astype(np.uint8)
        Image.fromarray(pixels[0] if channels == 1 else np.moveaxis(pixels, 0, -1), mode).save(
            file, format="jpeg", quality=quality
        )
        decoded = np.asarray(Image.open(file)).reshape(17, 24, channels)
        np.testing.assert_allclose(back.numpy(), np.moveaxis(decoded, -1, 0) / 255, atol=1e-7)


def test_a_lower_quality_is_further_from_the_image_and_values_outside_are_clipped() -> None:
    images = picture(4, 1, 32, 32)
    errors = [float((qualities.jpeg(images, quality) - images).square().mean()) for quality in (95, 30, 5)]
    assert errors == sorted(errors)
    assert errors[0] < 1e-4
    assert torch.equal(qualities.jpeg(torch.full((1, 1, 8, 8), 1.7), 90), torch.ones(1, 1, 8, 8))


@pytest.mark.parametrize("sigma", [0.3, 1.5, 9.0])
def test_blur_is_scipys_gaussian(sigma: float) -> None:
    images = picture(2, 3, 12, 7)
    expected = ndimage.gaussian_filter(images.double().numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4.0)
    found = qualities.blurred(images, sigma)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("bits", "values", "expected"),
    [
        (1, [0.0, 0.4, 0.5, 0.6, 1.0], [0, 0, 0, 1, 1]),  # half way between 0 and 1: to the even one, 0
        (2, [0.1, 0.2, 0.5, 0.8, 0.9], [0, 1 / 3, 2 / 3, 2 / 3, 1]),  # 0.5 is half way between 1/3 and 2/3
        (3, [-0.5, 0.3, 1.5], [0, 2 / 7, 1]),
        (8, [100.4 / 255, 100.6 / 255], [100 / 255, 101 / 255]),
    ],
)
def test_bits(bits: int, values: list[float], expected: list[float]) -> None:
    found = qualities.quantised(torch.tensor(values).reshape(1, 1, 1, -1), bits)
    np.testing.assert_allclose(found.flatten(), expected, atol=1e-7)


def test_noise_is_gaussian_has_the_deviation_and_is_not_clipped() -> None:
    values = torch.full((40, 50, 60), 0.9) + torch.arange(40).reshape(40, 1, 1) / 1e6
    added = (qualities.noisy(values, 0.25, "noise") - values).double()
    assert abs(float(added.mean())) < 0.25 / 120_000**0.5 * 4
    assert abs(float(added.std()) - 0.25) < 0.25 / 240_000**0.5 * 4
    assert float((values + added).max()) > 1.5
    inside = [float((added.abs() < 0.25 * reach).double().mean()) for reach in (1, 2)]
    np.testing.assert_allclose(inside, [0.6827, 0.9545], atol=0.006)


def test_a_rows_content_and_the_purpose_alone_decide_its_noise() -> None:
    rows = torch.rand(500, 3, 4, generator=torch.Generator().manual_seed(0))
    noise = qualities.noisy(rows, 0.5, "image@noise0.5") - rows

    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    among_others = qualities.noisy(rows[order], 0.5, "image@noise0.5") - rows[order]
    assert torch.equal(among_others, noise[order])
    columns_first = rows.transpose(1, 2).contiguous().transpose(1, 2)
    assert not columns_first.is_contiguous()
    assert torch.equal(qualities.noisy(columns_first, 0.5, "image@noise0.5") - rows, noise)
    assert not torch.allclose(qualities.noisy(rows, 0.5, "other") - rows, noise)
    assert len(noise[:, 0, 0].unique()) == 500
