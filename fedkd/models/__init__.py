"""Students' architectures, by name, and their start weights.

Besides: ``capture`` for features of any layer of any model, ``connectors`` and ``method_connectors`` to bring them to a
teacher's shape.
"""

from fedkd.models.classifier import Classifier as Classifier
from fedkd.models.registry import ModelSpec as ModelSpec
from fedkd.models.registry import build as build
from fedkd.models.registry import build_aside as build_aside
from fedkd.models.registry import forget as forget
from fedkd.models.registry import initialise as initialise
from fedkd.models.registry import kept as kept
from fedkd.models.registry import names as names
from fedkd.models.registry import skeleton as skeleton
