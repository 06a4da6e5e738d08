"""Several payloads that travel as one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from fedkd.knowledge._checks import KnowledgeError
from fedkd.knowledge.base import Contract, Knowledge, kind


@final
@dataclass(frozen=True)
class Bundle(Knowledge):
    """Several payloads that travel together, such as weights and a generator.

    Attributes:
        parts: payloads by name; a name holds letters, digits and underscores.
    """

    parts: Mapping[str, Knowledge]

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the parts' tensors under ``<name>:<kind>/<field>``."""
        return {
            f"{name}:{type(part).__name__}/{field}": tensor
            for name, part in self.parts.items()
            for field, tensor in part.to_tensors().items()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild the parts from their tensors."""
        grouped: dict[str, dict[str, Tensor]] = {}
        for path, tensor in tensors.items():
            head, separator, field = path.partition("/")
            if not separator or head.count(":") != 1:
                raise KnowledgeError(f"bundle: expected fields named '<name>:<kind>/<field>', found {path!r}")
            grouped.setdefault(head, {})[field] = tensor
        names = [head.split(":")[0] for head in grouped]
        if len(set(names)) < len(names):
            raise KnowledgeError(f"bundle: expected one payload of each name, found {sorted(grouped)}")
        return cls({head.split(":")[0]: kind(head.split(":")[1]).from_tensors(part) for head, part in grouped.items()})

    def check(self, contract: Contract) -> None:
        """Check every part."""
        for part in self.parts.values():
            part.check(contract)
