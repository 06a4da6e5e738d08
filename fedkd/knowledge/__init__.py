"""What travels between clients and the server: typed, checked before use, counted in bytes.

Every payload is a frozen record of tensors. ``to_tensors`` and ``from_tensors`` give its flat form, which is what is
sent, stored and counted; ``check`` holds a payload that came from elsewhere against the contract of the round.
"""

from fedkd.knowledge._checks import KnowledgeError
from fedkd.knowledge.base import KINDS, Contract, Knowledge, Layout, kind
from fedkd.knowledge.bundle import Bundle
from fedkd.knowledge.features import Features, Prototypes
from fedkd.knowledge.predictions import ClassLogits, SoftLabels
from fedkd.knowledge.weights import Generator, Weights

__all__ = [
    "KINDS",
    "Bundle",
    "ClassLogits",
    "Contract",
    "Features",
    "Generator",
    "Knowledge",
    "KnowledgeError",
    "Layout",
    "Prototypes",
    "SoftLabels",
    "Weights",
    "kind",
]
