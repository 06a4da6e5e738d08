"""From the name of an architecture to a model, its start weights, and the skeleton to run them in."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fedkd.errors import UserError, unknown
from fedkd.models import from_torchvision, fusion, image, shapes, signal, spectrogram, vector
from fedkd.models.classifier import Classifier
from fedkd.models.shapes import InputShape, Shape
from fedkd.seeding import generators_restored, seed_cpu

# Takes (input_shape, feature_width); raises a ValueError that says which shapes it takes, such as "images of ...".
Architecture = Callable[[InputShape, int], nn.Module]
F = TypeVar("F", bound=Callable[..., Any])

_ARCHITECTURES: dict[str, Architecture] = {
    "cnn": image.cnn,
    "cnn-bn": image.cnn_bn,
    "cnn-deep": image.cnn_deep,
    "cnn-wide": image.cnn_wide,
    "fusion": fusion.fusion,
    "linear": image.linear,
    "mlp": image.mlp,
    "mlp-deep": image.mlp_deep,
    "resnet-gn": image.resnet_gn,
    "resnet18": from_torchvision.resnet18,
    "shufflenet-v2-x0-5": from_torchvision.shufflenet_v2_x0_5,
    "signal-cnn": signal.signal_cnn,
    "spectrogram-cnn": spectrogram.spectrogram_cnn,
    "stroke": signal.stroke,
    "vector": vector.vector,
}


@dataclass(frozen=True)
class ModelSpec:
    """Everything that decides a model's structure; equal specs have weights of equal names and shapes.

    Attributes:
        architecture: a name from :func:`names`, or ``package.module:function`` for one of your own.
        input_shape: shape of one sample, such as ``(channels, height, width)``; of each part, if there are several.
        classes: number of classes ``C``.
        feature_width: number of features ``d`` before the head; equal for all that exchange features.
    """

    architecture: str
    input_shape: InputShape
    classes: int
    feature_width: int = 64

    def __post_init__(self) -> None:
        """Refuse sizes below one."""
        sizes = {"classes": self.classes, "feature_width": self.feature_width}
        for number, part in enumerate(shapes.parts(self.input_shape)):
            place = "input_shape" if part == self.input_shape else f"input_shape[{number}]"
            sizes |= {f"{place}[{axis}]": size for axis, size in enumerate(part)}
        for name, size in sizes.items():
            if size < 1:
                raise UserError(f"model {self.architecture!r}: {name}: expected 1 or more, found {size}.")

    @property
    def sample_shape(self) -> Shape:
        """Shape in which a sample reaches the model: flat if it has several parts."""
        return shapes.sample_shape(self.input_shape)


_KEPT: list[Any] = []


def kept(function: F) -> F:
    """Have what a function makes of a model's specification kept, until :func:`forget`."""
    cached: Any = lru_cache(maxsize=None)(function)
    _KEPT.append(cached)
    return cached  # type: ignore[no-any-return]  # to be called as the function is


def forget() -> None:
    """Make anew what was made of specifications: an architecture may have been edited since, as in a notebook."""
    for function in _KEPT:
        function.cache_clear()


def names() -> dict[str, str]:
    """Return the architectures by name, each with a line that describes it."""
    return {name: (function.__doc__ or "").partition("\n")[0] for name, function in sorted(_ARCHITECTURES.items())}


def build(spec: ModelSpec) -> Classifier:
    """Build a model with fresh weights, drawn from torch's global generator.

    Args:
        spec: what to build.

    Returns:
        The model, in training mode.

    Raises:
        UserError: there is no such architecture, it cannot take inputs of that shape, or one of your own fails in any
            way or does not give ``feature_width`` features.
    """
    architecture, own = _find(spec.architecture), ":" in spec.architecture
    try:
        features = architecture(spec.input_shape, spec.feature_width)
    except ValueError as error:
        found = f"found input shape {spec.input_shape}; {_remedy(architecture, spec)}"
        raise UserError(f"model {spec.architecture!r}: expected {_cause(error)}, {found}.") from error
    except (Exception, SystemExit) as error:
        if not own:
            raise
        what = "a function of (input_shape, feature_width) that returns a torch.nn.Module"
        raise UserError(f"{_place(spec)} {what}, but: {_cause(error)}.") from error
    if own:
        _expect_features(features, spec)
    return Classifier(features, spec.feature_width, spec.classes)


def initialise(spec: ModelSpec, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Draw the weights a client starts from; the global generators are left as they were.

    Args:
        spec: the model.
        seed: the same seed gives the same weights, of an architecture that draws from NumPy or Python as well.
        dtype: type of the floating-point entries. Values are drawn in torch's default type first, so a float64 start
            is the float32 start, widened. Counters such as ``num_batches_tracked`` keep their type.

    Returns:
        Parameters and buffers by name, detached.

    Raises:
        UserError: see :func:`build`.
    """
    model = build_aside(spec, seed)
    entries = chain(model.named_parameters(), model.named_buffers())
    return {name: value.detach().to(dtype if value.is_floating_point() else value.dtype) for name, value in entries}


@kept
def skeleton(spec: ModelSpec, *, training: bool = True) -> Classifier:
    """Return the shared module that says what a model is made of.

    Its own weights mean nothing and must not be changed. Training and evaluation mode are two modules, so that nobody
    has to switch the mode of a shared one.

    Args:
        spec: the model.
        training: whether BatchNorm uses and updates batch statistics.

    Returns:
        The same module for every equal call.

    Raises:
        UserError: see :func:`build`.
    """
    return build_aside(spec, seed=0).train(training)


def build_aside(spec: ModelSpec, seed: int) -> Classifier:
    """Build a model from a seed without disturbing the global generators (see :func:`build`)."""
    own = ":" in spec.architecture  # which may draw from NumPy or Python as well
    with generators_restored() if own else torch.random.fork_rng(devices=[]):
        if own:
            seed_cpu(seed)
        else:  # not torch.manual_seed: that would also seed the generators of CUDA devices, which are not restored here
            torch.default_generator.manual_seed(seed)
        return build(spec)


def _find(architecture: str) -> Architecture:
    """Look an architecture up by name, or import it by object reference."""
    if ":" in architecture:
        return _imported(architecture)
    if architecture not in _ARCHITECTURES:
        raise unknown("model", architecture, _ARCHITECTURES, own="package.module:function")
    return _ARCHITECTURES[architecture]


def _imported(reference: str) -> Architecture:
    """Import an architecture by its reference ``package.module:function``."""
    module_name, _, function_name = reference.partition(":")
    try:
        function: Architecture = getattr(importlib.import_module(module_name), function_name)
    except (Exception, SystemExit) as error:  # importing runs the user's code, so that anything can come out of it
        raise UserError(f"model {reference!r}: expected package.module:function, but: {_cause(error)}.") from error
    return function


def _remedy(architecture: Architecture, spec: ModelSpec) -> str:
    """Return what to do about an architecture that cannot take a sample's shape."""
    suited = [name for name, each in sorted(_ARCHITECTURES.items()) if _takes(each, spec.input_shape)]
    instead = f"take one that can: {', '.join(suited)}"
    channel = spec.sample_shape == spec.input_shape and _takes(architecture, (1, *spec.sample_shape))
    return f"{instead}; or, if it has one channel, store it as array[:, None]" if channel else instead


def _takes(architecture: Architecture, input_shape: InputShape) -> bool:
    try:
        with torch.device("meta"):  # which takes no memory
            architecture(input_shape, 1)
    except Exception:  # one of the user's own may raise anything
        return False
    return True


def _expect_features(features: nn.Module, spec: ModelSpec) -> None:
    """Try a feature part that is not ours on two samples of zeros.

    Raises:
        UserError: it is no module, fails on inputs of that shape, or gives features of another width.
    """
    expected = (2, spec.feature_width)
    wanted = f"{_place(spec)} features of shape {expected} for two samples"
    if not isinstance(features, nn.Module):
        raise UserError(f"{_place(spec)} a torch.nn.Module, found {type(features).__name__}.")
    try:
        with torch.no_grad():
            found = tuple(features.eval()(torch.zeros(2, *spec.sample_shape)).shape)
    except Exception as error:
        raise UserError(f"{wanted}, but: {_cause(error)}.") from error
    features.train()
    if found != expected:
        raise UserError(f"{wanted}, found {found}.")
    for name, parameter in features.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            remedy = "weights come from elsewhere; register it on what the forward pass computes"
            raise UserError(f"{_place(spec)} no hook on a parameter, found one on {name!r}: {remedy}.")
        if parameter.is_complex():
            remedy = "keep real and imaginary parts"
            raise UserError(f"{_place(spec)} real parameters, found {parameter.dtype} in {name!r}; {remedy}.")


def _place(spec: ModelSpec) -> str:
    return f"model {spec.architecture!r}, input shape {spec.input_shape}: expected"


def _cause(error: BaseException) -> str:
    """Return what an error says, in one line; an error of the user's own code with its type, if it is no ValueError."""
    text = " ".join(str(error).split()).rstrip(".")
    return text if text and isinstance(error, ValueError) else f"{type(error).__name__}: {text}".removesuffix(": ")
