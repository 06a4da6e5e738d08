"""The built-in data sets by name."""

from collections.abc import Mapping
from functools import partial

from fedkd.data.sources import cifar10, digits, fsdd, hapt, pictures, spoken_digits
from fedkd.data.sources.fetching import BuiltIn
from fedkd.data.sources.idx import idx_files, read_mnist

_TEN_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_IMAGES: Mapping[str, BuiltIn] = {
    "mnist": BuiltIn(
        "70,000 handwritten digits, grey 28x28; from a local folder, or downloaded if data.download is set",
        partial(read_mnist, name="mnist", archive="MNIST", classes=digits.TEN_DIGITS),
        dict.fromkeys(idx_files("MNIST"), ""),
        archive="MNIST",
    ),
    "fashion-mnist": BuiltIn(
        "70,000 pictures of clothes, grey 28x28; from a local folder, or downloaded if data.download is set",
        partial(read_mnist, name="fashion-mnist", archive="FashionMNIST", classes=_TEN_CLOTHES),
        dict.fromkeys(idx_files("FashionMNIST"), ""),
        archive="FashionMNIST",
    ),
    "cifar10": BuiltIn(
        "60,000 photographs, colour 32x32; from a local folder, or downloaded if data.download is set",
        cifar10.read_batches,
        dict.fromkeys(cifar10.BATCHES, ""),
        archive="CIFAR10",
    ),
    "cifar10-jpeg": BuiltIn(
        "CIFAR-10 as lossy JPEG: 60,000 photographs, colour 32x32; scores are not those of the original pixels",
        cifar10.read_jpeg,
        cifar10.JPEG,
    ),
    "cifar10-jpeg-small": BuiltIn(
        "12,000 of these: 1,000 of each class to train on, 200 to test on",
        partial(cifar10.read_jpeg, small=True),
        cifar10.JPEG,
        folder="cifar10-jpeg",
    ),
    "caltech10": BuiltIn(
        "1,565 photographs of ten kinds of things, colour 64x64, from Caltech-101",
        pictures.read_caltech10,
        pictures.CALTECH10,
    ),
    "sign-digits": BuiltIn(
        "2,059 photographs of hands that sign a digit, grey 64x64", pictures.read_sign_digits, pictures.SIGN_DIGITS
    ),
}
_SIGNALS: Mapping[str, BuiltIn] = {
    "fsdd": BuiltIn("3,000 spoken digits of six speakers: one second of audio at 8 kHz", fsdd.read_fsdd, fsdd.FILES),
    "spoken-digits": BuiltIn(
        "fsdd, each recording with a handwritten digit of mnist and, while they last, a hand of sign-digits",
        spoken_digits.read_spoken_digits,
        spoken_digits.FILES,
        folder="",
    ),
    "hapt": BuiltIn(
        "10,411 windows of a phone's accelerometer (g) and gyroscope (rad/s), 128 at 50 Hz: six activities, 30 people",
        hapt.read_hapt,
        hapt.FILES,
    ),
    "hapt-12": BuiltIn(
        "hapt with six transitions between postures too: 10,929 windows, 12 classes",
        partial(hapt.read_hapt, transitions=True),
        hapt.FILES,
        folder="hapt",
    ),
}
_DIGITS: Mapping[str, BuiltIn] = {
    "digits": BuiltIn("1,797 handwritten digits, grey 8x8; bundled with scikit-learn", digits.read_digits),
    "optdigits": BuiltIn(
        "2,880 handwritten digits in two qualities: bitmaps 32x32 and grey 8x8",
        digits.read_optdigits,
        digits.OPTDIGITS,
        folder="digits-multi",
    ),
    "pendigits": BuiltIn(
        "10,992 handwritten digits as strokes: eight points (x, y) of a pen, in [0, 1]",
        digits.read_pendigits,
        digits.PENDIGITS,
        folder="digits-multi",
    ),
    "mfeat": BuiltIn(
        "2,000 handwritten digits: grey 16x15 and four vectors of features, each in its own scale (standardise them)",
        digits.read_mfeat,
        digits.MFEAT,
        folder="digits-multi",
    ),
    "semeion": BuiltIn(
        "1,593 handwritten digits, black and white 16x16", digits.read_semeion, digits.SEMEION, folder="digits-multi"
    ),
}
BUILT_IN: Mapping[str, BuiltIn] = {**_DIGITS, **_IMAGES, **_SIGNALS}
