"""Codecs: knowledge in fewer bytes.

>>> import torch
>>> from fedkd.knowledge import SoftLabels
>>> labels = SoftLabels(torch.arange(100), torch.randn(100, 10))
>>> codecs = (TopK(2), Float16())
>>> coded = encode_knowledge(codecs, labels)
>>> labels.num_bytes, num_bytes(coded)  # ids 800, values 600, places 100, two forms
(4800, 1524)
>>> decode_knowledge(codecs, "SoftLabels", coded).logits.shape
torch.Size([100, 10])
"""

from fedkd.knowledge.codecs.base import Codec, decode, encode, num_bytes
from fedkd.knowledge.codecs.cache import Cache, Signal, catch_up, caught_up, missing, publish, receive
from fedkd.knowledge.codecs.delta import Delta, settled
from fedkd.knowledge.codecs.distributions import ClassIndex, Distributions
from fedkd.knowledge.codecs.halves import BFloat16, Float16
from fedkd.knowledge.codecs.low_rank import LowRank
from fedkd.knowledge.codecs.names import CODECS, codecs_named, expect_suited, payloads_suited
from fedkd.knowledge.codecs.payloads import decode_knowledge, encode_knowledge, meanings_of
from fedkd.knowledge.codecs.sparse import TopK
from fedkd.knowledge.codecs.uniform import Quantize, QuantizeRows

__all__ = [
    "CODECS",
    "BFloat16",
    "Cache",
    "ClassIndex",
    "Codec",
    "Delta",
    "Distributions",
    "Float16",
    "LowRank",
    "Quantize",
    "QuantizeRows",
    "Signal",
    "TopK",
    "catch_up",
    "caught_up",
    "codecs_named",
    "decode",
    "decode_knowledge",
    "encode",
    "encode_knowledge",
    "expect_suited",
    "meanings_of",
    "missing",
    "num_bytes",
    "payloads_suited",
    "publish",
    "receive",
    "settled",
]
