"""The built-in data sets by name."""

from collections.abc import Mapping
from functools import partial

from fedkd.data.sources.digits import TEN_DIGITS, read_digits
from fedkd.data.sources.fetching import BuiltIn
from fedkd.data.sources.idx import read_mnist

_TEN_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

BUILT_IN: Mapping[str, BuiltIn] = {
    "digits": BuiltIn("1,797 handwritten digits, grey 8x8; bundled with scikit-learn", read_digits),
    "mnist": BuiltIn(
        "70,000 handwritten digits, grey 28x28; from a local folder, or downloaded if data.download is set",
        partial(read_mnist, name="mnist", archive="MNIST", classes=TEN_DIGITS),
        "MNIST",
    ),
    "fashion-mnist": BuiltIn(
        "70,000 pictures of clothes, grey 28x28; from a local folder, or downloaded if data.download is set",
        partial(read_mnist, name="fashion-mnist", archive="FashionMNIST", classes=_TEN_CLOTHES),
        "FashionMNIST",
    ),
}
