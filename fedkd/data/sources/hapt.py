"""Windows of a phone's accelerometer and gyroscope, worn at the waist by 30 people (Reyes-Ortiz et al. 2015, HAPT)."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedkd.data.sources.arrays import Array, as_labels, read_columns
from fedkd.data.sources.dataset import DataSet

FILES = {"hapt_windows.npz": "3715acd4e555ba67ea3b90ea1758635f601a2b09cd5ed1bcb549d57afd935f40"}

_ACTIVITIES = 6  # the first classes; the others are transitions between postures
_WINDOW = (None, 128, 3)  # N windows of 128 values of three axes


def read_hapt(folder: Path, *, transitions: bool = False) -> DataSet:
    """Read accelerometer ``acc`` (g, gravity included) and gyroscope ``gyro`` (rad/s), both ``(N, 3, 128)``.

    The official test set is some of the people; windows of one recording overlap by half, so split by person only.

    Args:
        folder: holds ``hapt_windows.npz``.
        transitions: whether the six transitions between postures are classes too.
    """
    rows = {key: (None,) for key in ("label", "subject", "is_test", "classes")}
    shapes = {"acc": _WINDOW, "gyro": _WINDOW, "acc_scale": (), "gyro_scale": (), "rate_hz": (), **rows}
    arrays = read_columns(folder / "hapt_windows.npz", shapes)
    kept = arrays["label"] < (len(arrays["classes"]) if transitions else _ACTIVITIES)
    rate = float(arrays["rate_hz"])
    return DataSet(
        "hapt-12" if transitions else "hapt",
        {name: _as_signal(arrays[name][kept], float(arrays[f"{name}_scale"])) for name in ("acc", "gyro")},
        as_labels(arrays["label"][kept]),
        tuple(map(str, arrays["classes"] if transitions else arrays["classes"][:_ACTIVITIES])),
        official_test=torch.from_numpy(arrays["is_test"][kept]),
        groups=as_labels(arrays["subject"][kept]),
        rates={"acc": rate, "gyro": rate},
    )


def _as_signal(windows: Array, scale: float) -> Tensor:
    """Turn whole numbers ``(N, length, axes)`` into float32 ``(N, axes, length)`` in the sensor's unit."""
    return torch.from_numpy(np.ascontiguousarray((windows * scale).transpose(0, 2, 1), dtype=np.float32))
