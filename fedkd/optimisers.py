"""Optimisers as pure steps over named tensors, so that one step serves one client or a whole cohort.

All operations are elementwise: parameters of shape ``(...)`` for one client or ``(K, ...)`` for K clients give the same
numbers. The formulas are torch's own (``torch.optim.SGD``, ``Adam``, ``AdamW``), against which the tests hold them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Optimiser:
    """Which optimiser, with its settings.

    Attributes:
        name: ``sgd``, ``adam`` or ``adamw``.
        lr: learning rate.
        momentum: momentum of SGD (no dampening, no Nesterov).
        weight_decay: added to the gradient; decoupled for AdamW.
        betas: decay of Adam's two moments.
        eps: added to Adam's denominator.
    """

    name: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def start(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensors]:
        """Return the fresh state: named moments, each like the parameters."""
        slots = {
            "sgd": ("momentum",) if self.momentum else (),
            "adam": ("first", "second"),
            "adamw": ("first", "second"),
        }
        return {slot: {name: torch.zeros_like(p) for name, p in parameters.items()} for slot in slots[self.name]}

    @torch.no_grad()
    def step(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor | None],
        state: Mapping[str, Tensors],
        step: int | Tensor,
    ) -> None:
        """Take one step: update the parameters and the state in place.

        Args:
            parameters: by name.
            gradients: by name, shaped like the parameters; None where the loss does not depend on one, which then stays
                as it is, without decay, as in torch.
            state: from :meth:`start`.
            step: number of this step, from 1; for a cohort that of each client, float64, shape ``(K,)``.
        """
        update = self._sgd if self.name == "sgd" else self._adam
        for name, p in parameters.items():
            if (gradient := gradients[name]) is not None:
                update(p, gradient, {slot: moments[name] for slot, moments in state.items()}, step)
        torch.clear_autocast_cache()  # an autocast around the training would go on with the weights of before

    def _sgd(self, p: Tensor, gradient: Tensor, state: Tensors, step: int | Tensor) -> None:
        if self.weight_decay:
            gradient = gradient.add(p, alpha=self.weight_decay)
        if self.momentum:
            gradient = state["momentum"].mul_(self.momentum).add_(gradient)
        p.add_(gradient, alpha=-self.lr)

    def _adam(self, p: Tensor, gradient: Tensor, state: Tensors, step: int | Tensor) -> None:
        if self.weight_decay and self.name == "adamw":
            p.mul_(1 - self.lr * self.weight_decay)
        elif self.weight_decay:
            gradient = gradient.add(p, alpha=self.weight_decay)
        first = state["first"].lerp_(gradient, 1 - self.betas[0])
        second = state["second"].mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
        if isinstance(step, Tensor):
            # (sqrt(second / two) + eps) * one / lr, with what is each client's own multiplied out first.
            one, two = (1 - beta**step for beta in self.betas)
            slope, floor = (t.to(p.dtype).reshape(-1, *[1] * (p.ndim - 1)) for t in (one / two.sqrt(), one * self.eps))
            p.addcdiv_(first, second.sqrt().mul_(slope).add_(floor), value=-self.lr)
        else:
            denominator = second.sqrt().div_((1 - self.betas[1] ** step) ** 0.5).add_(self.eps)
            p.addcdiv_(first, denominator, value=-self.lr / (1 - self.betas[0] ** step))
