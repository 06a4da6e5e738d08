"""Features by the name of a layer: of torchvision's models, in cohorts, and without a trace."""

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import Module

from fedkd import losses
from fedkd.errors import UserError
from fedkd.models.capture import capture, forward

BLOCK_ENDS = ["layer1.1.relu#1:input", "layer2.1.relu#1:input"]


@pytest.fixture(scope="module")
def resnet() -> Module:
    """Return an unmodified ResNet-18 in double precision and evaluation mode."""
    from torchvision.models import resnet18

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return resnet18(weights=None, num_classes=4).double().eval()


@pytest.fixture(autouse=True)
def no_hook_is_left(resnet: Module) -> Iterator[None]:
    yield
    assert not hooks(resnet)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def hooks(model: Module) -> list[object]:
    """Return every hook on a model or on its class."""
    kinds = [kind for kind in vars(model) if kind.endswith("_hooks")]
    assert "_forward_hooks" in kinds
    assert "_forward_pre_hooks" in kinds
    found: list[object] = []
    for module in model.modules():
        for kind in kinds:
            assert kind not in vars(type(module))
            found += getattr(module, kind).values()
    return found


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).double()


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- what is captured


def test_a_resnets_layers_are_what_its_own_code_computes(resnet: Module, images: Tensor) -> None:
    with capture(resnet, ["layer1", "layer1.0.relu#0:input", "layer1.0.relu#1", "avgpool", "fc:input"]) as features:
        outputs = resnet(images)
    stem = resnet.maxpool(torch.relu(resnet.bn1(resnet.conv1(images))))
    block = resnet.layer1[0]
    before = block.bn1(block.conv1(stem))
    after = torch.relu(block.bn2(block.conv2(torch.relu(before))) + stem)
    assert torch.equal(features["layer1.0.relu#0:input"], before)  # although the ReLU works in place
    assert torch.equal(features["layer1.0.relu#1"], after)
    assert torch.equal(features["layer1"], resnet.layer1(stem))
    assert features["avgpool"].shape == (2, 512, 1, 1)
    assert torch.equal(features["fc:input"], features["avgpool"].flatten(1))
    assert torch.equal(outputs, resnet(images))


def test_captured_features_carry_gradients(images: Tensor) -> None:
    model = small()
    with capture(model, ["0"]) as features:
        outputs = model(inputs())
    by_capture = torch.autograd.grad(features["0"].square().sum() + outputs.sum(), list(model.parameters()))
    first = model[0](inputs())
    expected = torch.autograd.grad(first.square().sum() + model[2](first.relu()).sum(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(by_capture, expected, strict=True))


def test_the_latest_call_counts() -> None:
    model = small()
    with capture(model, ["0"]) as features:
        assert not features
        model(inputs(1))
        first = features["0"]
        model(inputs(2))
        assert torch.equal(features["0"], model[0](inputs(2)))
    assert torch.equal(first, model[0](inputs(1)))


def test_the_models_own_input_and_output() -> None:
    model = small()
    outputs, features = forward(model, ["", ":input"], inputs())
    assert torch.equal(features[""], outputs)
    assert torch.equal(features[":input"], inputs())


# --- many models


def test_two_models_of_one_class_are_not_mixed_up() -> None:
    student, teacher = small(), small()
    with capture(student, ["0"]) as ours, capture(teacher, ["0"]) as theirs:
        teacher(inputs(1))
        assert not ours
        student(inputs(2))
    assert torch.equal(ours["0"], student[0](inputs(2)))
    assert torch.equal(theirs["0"], teacher[0](inputs(1)))


def test_one_model_can_be_watched_twice() -> None:
    model = small()
    with capture(model, ["0"]) as outer:
        with capture(model, ["1:input"]) as inner:
            model(inputs())
        assert len(hooks(model)) == 4
    assert torch.equal(outer["0"], inner["1:input"])


class Meanwhile(Module):
    """Passes its input on, after another thread has called the whole model."""

    def __init__(self) -> None:
        super().__init__()
        self.whole: list[Module] = []  # a list, so that the model is not a part of its part

    def forward(self, values: Tensor) -> Tensor:
        if threading.current_thread() is threading.main_thread():
            other = threading.Thread(target=self.whole[0], args=(inputs(2),))
            other.start()
            other.join()
        return values


def test_other_threads_are_not_seen() -> None:
    model = small().append(Meanwhile())
    model[-1].whole.append(model)
    with capture(model, ["0", "2"]) as features:
        model(inputs(1))
        assert torch.equal(features["0"], model[0](inputs(1)))
    assert torch.equal(features["2"], model[:3](inputs(1)))


# --- no trace


def test_no_hook_is_left_after_an_exception(resnet: Module, images: Tensor) -> None:
    with pytest.raises(ZeroDivisionError), capture(resnet, ["layer1"]):
        _ = resnet(images) / (1 // 0)
    assert not hooks(resnet)
    with pytest.raises(RuntimeError, match="channels"), capture(resnet, ["layer1"]):
        resnet(images[:, :1])
    assert not hooks(resnet)
    with pytest.raises(UserError), capture(resnet, ["layer1", "layer9"]):
        pass  # pragma: no cover
    assert not hooks(resnet)


def test_a_call_that_failed_is_not_held_against_its_layers() -> None:
    model = small()
    with capture(model, ["2"]) as features:
        model(inputs())
        assert features
        with pytest.raises(RuntimeError):
            model(inputs()[:, :2])
        assert not features  # not those of the call before


def test_hooks_of_others_stay() -> None:
    model, calls = small(), []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    forward(model, ["0"], inputs())
    model(inputs())
    assert calls == [1, 1]


# --- in cohorts


def clients_of(model: Module, count: int) -> dict[str, Tensor]:
    """Return the tensors of several models, stacked."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: torch.stack([tensor * (1 + 0.01 * k) if tensor.is_floating_point() else tensor for k in range(count)])
        for name, tensor in tensors.items()
    }


def test_a_cohort_of_resnets_learns_from_captured_features(resnet: Module, images: Tensor) -> None:
    teacher = {name: tensor.detach() for name, tensor in resnet.state_dict().items()}
    students = {name: tensor.detach() for name, tensor in clients_of(resnet, 3).items()}
    buffers = dict(resnet.named_buffers())

    def objective(parameters: dict[str, Tensor], batch: Tensor) -> Tensor:
        _, ours = forward(resnet, BLOCK_ENDS, batch, tensors={**buffers, **parameters})
        _, theirs = forward(resnet, BLOCK_ENDS, batch, tensors=teacher)  # the same module with other tensors
        return torch.stack([losses.attention(ours[name], theirs[name]) for name in BLOCK_ENDS]).sum()

    batches = torch.stack([images, images.flip(3), -images])
    trained = {name: tensor for name, tensor in students.items() if name not in buffers}
    together = vmap(grad(objective))(trained, batches)
    assert together["conv1.weight"].abs().sum() > 0
    for k in range(3):
        alone = grad(objective)({name: tensor[k] for name, tensor in trained.items()}, batches[k])
        for name in ("conv1.weight", "layer2.1.bn2.bias"):
            torch.testing.assert_close(together[name][k], alone[name], rtol=1e-9, atol=1e-15)
    assert not hooks(resnet)


def test_features_of_a_cohort_are_those_of_its_clients() -> None:
    model = small()
    students, batches = clients_of(model, 3), torch.stack([inputs(k) for k in range(3)])
    outputs, features = vmap(lambda tensors, batch: forward(model, ["1"], batch, tensors=tensors))(students, batches)
    for k in range(3):
        own = {name: tensor[k] for name, tensor in students.items()}
        torch.testing.assert_close(outputs[k], functional_call(model, own, (batches[k],)), rtol=1e-12, atol=0)
        _, alone = forward(model, ["1"], batches[k], tensors=own)
        torch.testing.assert_close(features["1"][k], alone["1"], rtol=1e-12, atol=0)


def test_an_exception_inside_a_transform_leaves_no_hook() -> None:
    model = small()

    def fails(batch: Tensor) -> Tensor:
        with capture(model, ["0"]):
            return model(batch[:, :2])

    with pytest.raises(RuntimeError):
        vmap(fails)(torch.stack([inputs(), inputs()]))
    assert not hooks(model)


# --- refusals


class Pair(Module):
    """Gives two tensors, and has a part that it never uses."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(1, 1)
        self.inner = Inner()

    def forward(self, values: Tensor) -> Tensor:
        return self.inner(values, scale=2)[0]


class Inner(Module):
    def forward(self, values: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        return scale * values, values


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer9", "Pair: unknown layer 'layer9': Known: inner, unused"),
        ("inne", "did you mean 'inner'"),
        ("inner:output", "expected 'name', 'name#run', 'name:input' or 'name#run:input'"),
        ("inner#first", "expected 'name', 'name#run'"),
        ("inner", "layer 'inner': expected one tensor as its output, found tuple"),
        ("unused", "layer 'unused': expected to run in the model's call, found 0 runs of 'unused'"),
        ("inner#1:input", "layer 'inner#1:input': expected to run in the model's call, found 1 runs of 'inner'"),
    ],
)
def test_refuses_what_is_not_there(layer: str, message: str) -> None:
    model = Pair()
    with pytest.raises(UserError, match=message):
        forward(model, [layer], inputs())
    assert not hooks(model)


def test_asks_which_run_is_meant(resnet: Module, images: Tensor) -> None:
    with pytest.raises(UserError, match=r"layer 'layer1.0.relu': runs several times in a call; say which, as layer1"):
        forward(resnet, ["layer1.0.relu"], images)


def test_one_name_instead_of_a_list_is_refused() -> None:
    with (
        pytest.raises(UserError, match=r"^layers: expected a list of names, found the text '0'; write \['0'\]\.$"),
        capture(nn.Sequential(nn.Linear(2, 2)), "0"),
    ):
        pass
