"""Connectors: shapes, what they compute, and cohorts."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from fedkd import losses
from fedkd.models.connectors import Connector, Norm, embedding, map_to_tokens, regressor, resized, tokens_to_map

STUDENT = (3, 8, 8)
TEACHERS = [(5, 8, 8), (5, 4, 4), (5, 16, 16), (5, 6, 7), (5, 1, 1), (5, 12, 3), (2, 9, 9)]
every_teacher = pytest.mark.parametrize("teacher", TEACHERS, ids=str)


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def assert_a_cohort_equals_its_clients(module: nn.Module, target: Tensor) -> None:
    """Train stacked copies of a connector for one step's gradient, and each alone."""
    start = dict(module.named_parameters())
    parameters = {name: torch.stack([p.detach(), 1.1 * p.detach(), 0.5 * p.detach()]) for name, p in start.items()}
    buffers = {name: torch.stack([b] * 3) for name, b in module.named_buffers()}

    def objective(own: dict[str, Tensor], rest: dict[str, Tensor], batch: Tensor) -> Tensor:
        rest = {name: buffer.clone() for name, buffer in rest.items()}
        return losses.hint(functional_call(module, {**own, **rest}, (batch,)), target)

    batches = torch.stack(
        [maps(len(target), *STUDENT), maps(len(target), *STUDENT).flip(2), -maps(len(target), *STUDENT)]
    )
    together = vmap(grad(objective))(parameters, buffers, batches)
    for k in range(3):
        row = [{name: tensor[k] for name, tensor in stacked.items()} for stacked in (parameters, buffers)]
        for name, alone in grad(objective)(*row, batches[k]).items():
            torch.testing.assert_close(together[name][k], alone, rtol=1e-9, atol=1e-12)
    assert all(gradient.abs().sum() > 0 for name, gradient in together.items() if not name.endswith("0.bias"))


@every_teacher
def test_resized_averages_what_shrinks_and_repeats_what_grows(teacher: tuple[int, int, int]) -> None:
    size = teacher[1:]
    found = resized(maps(2, *STUDENT), size)
    smaller = tuple(min(pair) for pair in zip(STUDENT[1:], size, strict=True))
    expected = F.interpolate(F.adaptive_avg_pool2d(maps(2, *STUDENT), smaller), size, mode="nearest")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@every_teacher
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_a_connector_reaches_channels_and_size(teacher: tuple[int, int, int], norm: Norm) -> None:
    connector = Connector(STUDENT, teacher, norm=norm, kernel_size=3).double()
    assert connector(maps(4, *STUDENT)).shape == (4, *teacher)
    assert_a_cohort_equals_its_clients(connector, maps(4, *teacher))


def test_a_connector_is_the_convolution_and_the_norm() -> None:
    connector = Connector(STUDENT, (5, 8, 8)).double().eval()
    expected = torch.einsum("dc,nchw->ndhw", connector.layers[0].weight[:, :, 0, 0], maps(4, *STUDENT))
    torch.testing.assert_close(connector(maps(4, *STUDENT)), expected / (1 + 1e-5) ** 0.5)
    assert Connector(STUDENT, (5, 8, 8), relu=True).double()(maps(4, *STUDENT)).min() == 0
    spread = Connector((3, 8, 8), (500, 8, 8)).layers[0].weight.std().item()
    assert spread == pytest.approx((2 / 500) ** 0.5, rel=0.1)  # as the official code starts it


@every_teacher
def test_a_regressor_reaches_channels_and_size(teacher: tuple[int, int, int]) -> None:
    module = regressor(STUDENT, teacher).double()
    outputs = module(maps(4, *STUDENT))
    assert outputs.shape == (4, *teacher)
    assert outputs.min() == 0
    assert regressor(STUDENT, teacher, relu=False).double()(maps(4, *STUDENT)).min() < 0
    if isinstance(module, nn.Sequential):  # the ReLU leaves some gradients zero in a step or two, but not all
        assert_a_cohort_equals_its_clients(regressor(STUDENT, teacher, relu=False).double(), maps(4, *teacher))


def test_the_regressors_convolutions_are_those_of_public_code() -> None:
    halves, doubles, shrinks = (regressor(STUDENT, (5, side, side))[0] for side in (4, 16, 6))
    assert (type(halves), halves.kernel_size, halves.stride) == (nn.Conv2d, (3, 3), (2, 2))
    assert (type(doubles), doubles.kernel_size, doubles.stride) == (nn.ConvTranspose2d, (4, 4), (2, 2))
    assert (type(shrinks), shrinks.kernel_size, shrinks.stride) == (nn.Conv2d, (3, 3), (1, 1))


def test_tokens_and_maps_are_the_same_places() -> None:
    tokens = maps(2, 7, 4)
    laid_out = tokens_to_map(tokens, (2, 3), skip=1)
    assert laid_out.shape == (2, 4, 2, 3)
    assert torch.equal(laid_out[:, :, 1, 2], tokens[:, 1 + 5])
    assert torch.equal(map_to_tokens(laid_out), tokens[:, 1:])


def test_an_embedding_flattens() -> None:
    module = embedding((3, 2, 2)).double()
    assert module(maps(4, 3, 2, 2)).shape == (4, 128)
    assert torch.equal(module(maps(4, 3, 2, 2)), module[1](maps(4, 3, 2, 2).flatten(1)))


def test_refuses_other_norms_and_numbers_of_tokens() -> None:
    with pytest.raises(ValueError, match="norm: expected one of 'batch', 'group', 'none', found 'layer'"):
        Connector(STUDENT, STUDENT, norm="layer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"tokens: expected shape \(N, 7, d\), found \(2, 6, 4\)"):
        tokens_to_map(maps(2, 6, 4), (2, 3), skip=1)


def test_connectors_refuse_even_kernels_and_what_is_no_map() -> None:
    for side in (0, 2, 4, 3.0):
        with pytest.raises(ValueError, match=rf"^kernel_size: expected an odd number of 1 or more, found {side}\.$"):
            Connector((3, 8, 8), (5, 8, 8), kernel_size=side)  # type: ignore[arg-type]
    for make in (Connector, regressor):
        for shape in ((64,), (8, 8), (3, 0, 8), 64, (3.0, 8, 8)):
            with pytest.raises(
                ValueError, match=r"^student: expected the shape \(C, H, W\) of one sample's map, found"
            ):
                make(shape, (5, 8, 8))  # type: ignore[operator]
        with pytest.raises(ValueError, match=r"^teacher: .*found \(2, 5, 8, 8\); leave the number of samples out\.$"):
            make((3, 8, 8), (2, 5, 8, 8))  # type: ignore[operator]
