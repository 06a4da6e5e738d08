"""A trained model in one file: its tensors as safetensors, its specification in the file's metadata."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fedkd.errors import UserError
from fedkd.learner.model import Model
from fedkd.models import ModelSpec, build
from fedkd.models.shapes import from_plain

_SPEC = "fedkd_spec"


def to_bytes(model: Model) -> bytes:
    """Return a model as the content of a safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.tensors.items()}
    return save(tensors, metadata={_SPEC: json.dumps(asdict(model.spec))})


def read_model(path: Path) -> Model:
    """Read a model from a file.

    Raises:
        UserError: the file is missing, damaged, or was not written by fedkd.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: expected a trained model (safetensors), but: {error}.") from error
    if _SPEC not in metadata:
        raise UserError(f"{path}: expected a model written by fedkd, found a safetensors file without {_SPEC!r}.")
    try:
        spec = spec_of(json.loads(metadata[_SPEC]))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: expected the specification of a model in {_SPEC!r}, but: {error}.") from error
    return Model(spec, tensors)


def spec_of(values: Mapping[str, Any]) -> ModelSpec:
    """Return the specification that ``asdict`` and JSON made plain values of."""
    return ModelSpec(**{**values, "input_shape": from_plain(values["input_shape"])})


def to_module(model: Model) -> nn.Module:
    """Return a model as a torch module in evaluation mode, with weights of its own."""
    with torch.random.fork_rng(devices=[]):  # the weights that it starts from are replaced
        module = build(model.spec).to(_floating_type(model.tensors))
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        tensor.data.copy_(model.tensors[name])
    return module.eval()


def load_model(path: Path | str) -> nn.Module:
    """Read a trained model of a run folder as a torch module, in evaluation mode.

    Raises:
        UserError: the file is missing, damaged, or was not written by fedkd.
    """
    return to_module(read_model(Path(path)))


def _floating_type(tensors: Mapping[str, Tensor]) -> torch.dtype:
    return next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
