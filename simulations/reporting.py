"""What the studies share: rows become a CSV file, means with their spread, and tables in Markdown."""

import csv
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fedkd.gains import half_width

Row = dict[str, Any]


def in_processes(work: Callable[..., list[Row]], jobs: Sequence[tuple[Any, ...]], workers: int) -> Iterator[list[Row]]:
    """Yield the rows of each job in their order, as soon as they are there.

    Args:
        work: called with each job's values, in one of several processes.
        jobs: independent of each other.
        workers: number of processes; 1 or less: in this one.
    """
    if workers <= 1:
        yield from (work(*job) for job in jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(work, *job) for job in jobs]
        yield from (each.result() for each in waiting)


def grouped(rows: Sequence[Row], *keys: str) -> list[list[Row]]:
    """Return the rows that agree in some columns together, in the order in which they first occur."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.values())


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation; 0 for a single value."""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return a mean and the 95 % interval that Student's t gives it; the mean alone, three times, for one value."""
    middle, half = fmean(values), half_width(values) or 0.0
    return middle, middle - half, middle + half


def spread(values: Sequence[float], digits: int) -> str:
    """Write mean ± standard deviation; the mean alone where nothing varies."""
    middle, sd = mean_sd(values)
    return f"{middle:.{digits}f} ± {sd:.{digits}f}" if sd else f"{middle:.{digits}f}"


def interval(values: Sequence[float], digits: int) -> str:
    """Write a mean with its sign, and its 95 % interval."""
    middle, low, high = mean_interval(values)
    limits = f" ({low:+.{digits}f} to {high:+.{digits}f})" if len(values) > 1 else ""
    return f"{middle:+.{digits}f}{limits}"


def markdown(rows: Sequence[Row]) -> str:
    """Write rows with equal columns as a table."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with equal columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
