"""Several payloads that travel as one."""

import torch

from fedkd.knowledge import Bundle, Generator
from tests.knowledge.examples import soft_labels


def test_a_bundles_parts_are_named_by_name_kind_and_field() -> None:
    flat = Bundle({"up": soft_labels(), "net": Bundle({"g": Generator({"x": torch.zeros(1)})})}).to_tensors()
    assert list(flat) == ["up:SoftLabels/ids", "up:SoftLabels/logits", "net:Bundle/g:Generator/x"]
