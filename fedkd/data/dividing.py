"""Divide a simulated federation into the files of a real one: what all share, and what each client's node holds."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from torch import Tensor

from fedkd.config import Experiment
from fedkd.data.federation import Federation, build
from fedkd.data.holdings import Holding, views_of
from fedkd.data.sources import DataSet
from fedkd.data.sources.dataset import SPLITS
from fedkd.data.splits import commons
from fedkd.data.views import parse
from fedkd.errors import UserError

COMMONS, EXPERIMENT = "commons.npz", "experiment.toml"


def divide(experiment: Experiment, out: Path) -> dict[str, Path]:
    """Write the files of a deployment that computes what a simulation computes, bit for bit.

    These are ``commons.npz``; for each client ``<key>.npz``, its samples, which only this user may read, and
    ``<key>.toml``, its node's configuration; and ``experiment.toml``.

    Args:
        experiment: what is simulated.
        out: folder of the files, new or empty.

    Returns:
        Path of each client's node configuration, by client key.

    Raises:
        UserError: the experiment cannot be divided, or the folder holds something.
    """
    _expect_divisible(experiment)
    federation = build(experiment)
    empty = [key for key, held in federation.holdings.items() if not len(held.train)]
    if empty:
        raise UserError(f"{empty[0]}: expected training samples for every client, found none; raise min_samples.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in out.iterdir())
    except OSError as error:
        raise UserError(f"{out}: expected a folder that can be made, but: {error}; choose another one.") from error
    if found:
        raise UserError(f"{out}: expected a new or empty folder, found {', '.join(found[:3])}; choose another one.")
    shared, _ = commons(experiment, federation.dataset, federation.splits)
    np.savez(out / COMMONS, allow_pickle=False, **arrays(shared))
    nodes = {key: _write_client(federation, held, out.resolve()) for key, held in federation.holdings.items()}
    (out / EXPERIMENT).write_text(_deployed(experiment, out.resolve()).to_toml(), encoding="utf-8")
    return nodes


def arrays(dataset: DataSet) -> dict[str, Any]:
    """Return a data set as the arrays of an ``.npz`` file (see :func:`fedkd.data.sources.load`)."""
    columns: Mapping[str, Tensor | None] = {
        "labels": dataset.labels,
        "ids": dataset.ids,
        "is_test": dataset.official_test,
        "groups": dataset.groups,
        **dataset.views,
        **{f"{name}_present": there for name, there in dataset.present.items()},
    }
    found: dict[str, Any] = {name: column.numpy() for name, column in columns.items() if column is not None}
    found |= {f"{name}_rate": np.array(rate) for name, rate in dataset.rates.items()}
    if dataset.split is not None:
        found["split"] = np.array(SPLITS)[dataset.split.numpy()]
    return {"classes": np.array(dataset.classes), **found}


def _expect_divisible(experiment: Experiment) -> None:
    settings = experiment.federation
    if settings.partition == "own":
        raise UserError("federation.partition: expected one that deals samples out, found 'own'; change it.")
    made = [name for name in settings.missing if "@" in name]
    if made:
        expected = "expected names without '@', since samples lack what they were recorded in"
        raise UserError(f"federation.missing: {expected}, found {made[0]!r}; name the view that it is made from.")
    for view in settings.views:
        _expect_one_presence(experiment, view)


def _expect_one_presence(experiment: Experiment, view: str) -> None:
    """Refuse what a node's file cannot say, since it has one presence for each base view."""
    names = [name for name in views_of(experiment, view) if "+" not in name]
    for base in experiment.federation.missing:
        made = [name for name in names if name != base and parse(name)[0].base == base]
        if base in names and made:
            expected = f"expected {base!r} from every sample that has {made[0]!r}, which is made from it"
            raise UserError(f"federation.missing: {expected}, found clients that lack it alone; leave {base!r} out.")


def _write_client(federation: Federation, held: Holding, out: Path) -> Path:
    with os.fdopen(os.open(out / f"{held.key}.npz", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as private:
        np.savez(private, allow_pickle=False, **arrays(held_by(federation, held)))
    config = {
        "client": held.key,
        "data": str(out / f"{held.key}.npz"),
        "store": str(out / "store"),
        "commons": str(out / COMMONS),
        "view": held.view,
        "architecture": held.architecture,
    }
    path = out / f"{held.key}.toml"
    path.write_text(tomli_w.dumps(config), encoding="utf-8")
    return path


def held_by(federation: Federation, held: Holding) -> DataSet:
    """Return the samples that a client holds, in the views that it holds, with its own test split."""
    dataset = federation.dataset
    trained = torch.cat([*held.having.values()]).unique()
    ids = torch.cat([trained, held.test]).sort().values
    own = dataset.take(dataset.rows(ids))
    test = torch.isin(ids, held.test)
    present: dict[str, Tensor] = {}
    for name, having in held.having.items():
        for base in (part.base for part in parse(name)):
            if "+" not in name and base in own.views:
                there = torch.where(test, own.present.get(base, torch.ones_like(test)), torch.isin(ids, having))
                present[base] = present.get(base, torch.zeros_like(there)) | there
    views = {base: own.views[base].clone() for base in present}
    for base, there in present.items():
        views[base][~there] = 0
    return DataSet(
        held.key,
        views,
        own.labels,
        own.classes,
        official_test=test if len(held.test) else None,
        present={base: there for base, there in present.items() if not there.all()},
        rates={name: rate for name, rate in own.rates.items() if name in views},
        given_ids=ids,
    )


def _deployed(experiment: Experiment, out: Path) -> Experiment:
    values = experiment.model_dump(mode="json", exclude_none=True)
    values["data"].pop("root", None)
    values["federation"] |= {"partition": "own", "missing": {}}
    values["data"] |= {"name": str(out / COMMONS), "local_test": 0.0, "split_by": "sample", "download": False}
    return Experiment.model_validate({**values, "alone": False})
