"""Arrays as they come out of files."""

from pathlib import Path

import numpy as np
import pytest

from fedkd.data.sources import load
from fedkd.errors import UserError
from tests.data.sources.conftest import save


def test_what_is_no_npz_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.npz: expected an .npz file"):
        load(str(tmp_path / "absent.npz"))
    (tmp_path / "text.npz").write_text("labels")
    with pytest.raises(UserError, match=r"text\.npz: expected an .npz file"):
        load(str(tmp_path / "text.npz"))
    with (tmp_path / "lone.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match=r"lone\.npz: expected an .npz file"):
        load(str(tmp_path / "lone.npz"))
    whole = Path(save(tmp_path / "half.npz", labels=np.zeros(3000, np.int64))).read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half\.npz: expected an .npz file"):
        load(str(tmp_path / "half.npz"))
