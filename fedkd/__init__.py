"""fedkd: federated knowledge distillation on Flower and Ray.

``fedkd.simulate(experiment)`` runs one experiment, and ``fedkd.resume(folder)`` goes on with one that was cut off;
everything else is imported from the module that it lives in. Without a federation: ``fedkd.losses``, ``fedkd.ensemble``
(several teachers), ``fedkd.calibration``, ``fedkd.knowledge`` (payloads, codecs) and ``fedkd.models`` (features,
connectors); see ``docs/library.md``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedkd.config import Experiment as Experiment
    from fedkd.engine.result import Result as Result
    from fedkd.engine.resume import resume as resume
    from fedkd.engine.simulate import simulate as simulate
    from fedkd.learner.model_file import load_model as load_model

__version__ = "0.1.0"

_LAZY = {
    "Experiment": "fedkd.config",
    "Result": "fedkd.engine.result",
    "load_model": "fedkd.learner.model_file",
    "resume": "fedkd.engine.resume",
    "simulate": "fedkd.engine.simulate",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - Flower imports this module while it checks an app: keep it light
    """Import the few public names on first use."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fedkd' has no attribute {name!r}")
