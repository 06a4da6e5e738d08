"""What every architecture is held to, whatever it takes."""

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from fedkd import models
from fedkd.models import ModelSpec
from fedkd.models.shapes import InputShape


def a_cohort_equals_one_by_one(spec: ModelSpec) -> None:
    """Run three clients' models together and alone, in double precision, and compare logits and gradients."""
    starts = [models.initialise(spec, seed, torch.float64) for seed in range(3)]
    stacked = {name: torch.stack([start[name] for start in starts]) for name in starts[0]}
    inputs = torch.randn(3, 4, *spec.sample_shape, dtype=torch.float64)
    labels = torch.arange(4) % spec.classes
    module = models.skeleton(spec)

    def run(start: dict[str, Tensor], batch: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        def loss(own: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            logits = functional_call(module, own, (batch,), strict=True)
            return cross_entropy(logits, labels), logits

        return torch.func.grad(loss, has_aux=True)(start)

    together, logits = vmap(run)(stacked, inputs)
    for client, start in enumerate(starts):
        alone, alone_logits = run(start, inputs[client])
        torch.testing.assert_close(logits[client], alone_logits, rtol=1e-11, atol=1e-11)
        for name, gradient in alone.items():
            torch.testing.assert_close(together[name][client], gradient, rtol=1e-9, atol=1e-9)


def a_gradient_reaches_every_parameter(spec: ModelSpec) -> None:
    """Take one backward pass, and look for parameters that it left alone."""
    model = models.build(spec)
    model(torch.randn(16, *spec.sample_shape)).square().sum().backward()
    unreached = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


def accuracy_after(
    architecture: str, inputs: Tensor, labels: Tensor, *, steps: int, parts: InputShape | None = None
) -> float:
    """Train a small student on the first half of the samples, all in one batch, and return its accuracy on the rest."""
    shape = parts or tuple(inputs.shape[1:])
    spec = ModelSpec(architecture, shape, classes=int(labels.max()) + 1, feature_width=32)
    model = models.build(spec)
    model.load_state_dict(models.initialise(spec, seed=1))
    half = len(inputs) // 2
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        cross_entropy(model(inputs[:half]), labels[:half]).backward()
        optimiser.step()
    with torch.no_grad():
        return float((model(inputs[half:]).argmax(dim=1) == labels[half:]).float().mean())
