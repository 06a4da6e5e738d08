"""Connectors of single methods: shapes, what they compute, and that all of them is trained."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from fedkd import losses
from fedkd.models.method_connectors import Paraphraser, ReviewFusion, VidRegressor, translator

STUDENTS = [(3, 8, 8), (4, 4, 4), (6, 1, 1)]
TEACHERS = [(5, 8, 8), (7, 6, 6), (8, 1, 1)]


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def assert_all_is_trained(module: nn.Module, loss: Tensor) -> None:
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert set(dict(module.named_parameters())) <= set(module.state_dict())


# --- VID


@pytest.mark.parametrize("teacher", [(5, 4, 4), (5, 8, 8), (5, 9, 2)], ids=str)
def test_vid_regressor_gives_mean_and_variance(teacher: tuple[int, int, int]) -> None:
    module = VidRegressor((3, 8, 8), teacher).double()
    mean, variance = module(maps(4, 3, 8, 8))
    assert mean.shape == (4, *teacher)
    assert variance.tolist() == pytest.approx([5.0] * 5, rel=1e-6)
    assert mean.min() < 0
    assert_all_is_trained(module, losses.vid(mean, maps(4, *teacher), variance=variance))


def test_vid_regressor_learns_its_variance_in_a_step() -> None:
    module = VidRegressor((3, 4, 4), (5, 4, 4)).double()
    optimiser = torch.optim.SGD(module.parameters(), 0.1)
    mean, variance = module(maps(4, 3, 4, 4))
    losses.vid(mean, maps(4, 5, 4, 4), variance=variance).backward()
    optimiser.step()
    assert (module(maps(4, 3, 4, 4))[1] < variance).all()  # the errors are smaller than 5


def test_vid_regressors_train_in_a_cohort() -> None:
    module, teacher = VidRegressor((3, 4, 4), (5, 4, 4)).double(), maps(4, 5, 4, 4)

    def objective(parameters: dict[str, Tensor], batch: Tensor) -> Tensor:
        mean, variance = functional_call(module, parameters, (batch,))
        return losses.vid(mean, teacher, variance=variance)

    start = {name: p.detach() for name, p in module.named_parameters()}
    stacked = {name: torch.stack([p, 0.5 * p]) for name, p in start.items()}
    batches = torch.stack([maps(4, 3, 4, 4), -maps(4, 3, 4, 4)])
    together = vmap(grad(objective))(stacked, batches)
    for k in range(2):
        alone = grad(objective)({name: p[k] for name, p in stacked.items()}, batches[k])
        for name, gradient in alone.items():
            torch.testing.assert_close(together[name][k], gradient, rtol=1e-9, atol=1e-12)


# --- ReviewKD


def test_review_fusion_reaches_the_teachers_shapes_and_trains_all_of_it() -> None:
    fusion = ReviewFusion(STUDENTS, TEACHERS).double()
    fused = fusion([maps(4, *shape) for shape in STUDENTS])
    assert [tuple(stage.shape) for stage in fused] == [(4, *shape) for shape in TEACHERS]
    assert_all_is_trained(fusion, losses.review_kd(fused, [maps(4, *shape) for shape in TEACHERS]))


def test_review_fusion_weighs_each_stage_with_the_deeper_ones() -> None:
    fusion = ReviewFusion(STUDENTS[1:], TEACHERS[1:], width=2).double().eval()
    shallow, deep = (maps(4, *shape) for shape in STUDENTS[1:])
    from_deep = fusion.narrow[1](deep)
    own, above = fusion.narrow[0](shallow), from_deep.expand(4, 2, 4, 4)
    weights = torch.sigmoid(fusion.weigh[0](torch.cat([own, above], dim=1)))
    mixed = own * weights[:, 0:1] + above * weights[:, 1:2]
    fused = fusion([shallow, deep])
    torch.testing.assert_close(fused[1], fusion.widen[1](from_deep))
    torch.testing.assert_close(fused[0], fusion.widen[0](F.interpolate(mixed, (6, 6), mode="nearest")))


def test_review_fusion_is_as_wide_as_the_deepest_stage_up_to_512() -> None:
    assert ReviewFusion(STUDENTS, TEACHERS).narrow[0][0].out_channels == 6
    assert ReviewFusion([(600, 1, 1)], [(2, 1, 1)]).narrow[0][0].out_channels == 512
    assert ReviewFusion(STUDENTS, TEACHERS, width=9).narrow[0][0].out_channels == 9


def test_review_fusion_refuses_other_numbers_of_stages() -> None:
    with pytest.raises(ValueError, match="teachers: expected one shape for each of the student's, found 2"):
        ReviewFusion(STUDENTS, TEACHERS[1:])
    with pytest.raises(ValueError, match="maps: expected one for each of 3 stages, found 1"):
        ReviewFusion(STUDENTS, TEACHERS)([maps(4, *STUDENTS[0])])


# --- factor transfer


def test_paraphraser_and_translator_meet_at_the_factors() -> None:
    paraphraser, student = Paraphraser(6, rate=0.5).double(), translator(4, 3).double()
    theirs, ours = paraphraser.factor(maps(2, 6, 4, 4)), student(maps(2, 4, 4, 4))
    assert theirs.shape == ours.shape == (2, 3, 4, 4)
    assert paraphraser(maps(2, 6, 4, 4)).shape == (2, 6, 4, 4)
    assert_all_is_trained(paraphraser, losses.hint(paraphraser(maps(2, 6, 4, 4)), maps(2, 6, 4, 4)))
    assert_all_is_trained(student, losses.factor_transfer(ours, theirs))


def test_a_paraphraser_learns_to_restore() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        paraphraser = Paraphraser(4, rate=0.5).double()
    target = maps(4, 4, 4, 4)[:, :1].expand(4, 4, 4, 4)  # four equal channels: two factors are enough
    optimiser = torch.optim.Adam(paraphraser.parameters(), 0.01)
    course = []
    for _ in range(60):
        loss = losses.hint(paraphraser(target), target)
        course.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert course[-1] < 0.3 * course[0]
