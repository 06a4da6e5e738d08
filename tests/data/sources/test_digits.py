"""Small sets of handwritten digits."""

from fedkd.data.sources import load


def test_digits_are_bundled() -> None:
    digits = load("digits")
    images = digits.views["image"]
    assert images.shape == (1797, 1, 8, 8)
    assert (float(images.min()), float(images.max())) == (0, 1)
    # The first digit of the data set is a zero, whose first row has grey levels 0 0 5 13 9 1 0 0 of 16.
    assert (images[0, 0, 0] * 16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert digits.labels[:10].tolist() == list(range(10))
    assert digits.classes == tuple("0123456789")
    assert digits.official_test is None
