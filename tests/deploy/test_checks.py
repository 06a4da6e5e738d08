"""Each check of the doctor, on facts made up for it."""

import re
import tomllib
from pathlib import Path

import pytest

from fedkd.deploy import checks
from fedkd.deploy.checks import BOUNDS, GIB, Gpu

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = (3, 10, 14), (3, 11, 0)


@pytest.mark.parametrize(("version", "verdict"), [(OLD, "fail"), (NEW, "ok"), ((3, 13, 1), "ok")])
def test_python(version, verdict):
    assert checks.python(version).verdict == verdict


def test_the_bounds_of_packages_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {}
    for text in project["dependencies"]:
        name, low, high = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+),<([\d.]+)", text).groups()
        wanted[name] = tuple(tuple(map(int, part.split("."))) for part in (low, high))

    assert {name: wanted[name] for name in BOUNDS if name != "ray"} == {
        name: bounds for name, bounds in BOUNDS.items() if name != "ray"
    }


@pytest.mark.parametrize(
    ("name", "version", "error", "verdict"),
    [
        ("flwr", "1.41.0", None, "ok"),
        ("flwr", "1.41.3", None, "ok"),
        ("flwr", "1.42.0", None, "fail"),
        ("flwr", "1.9.0", None, "fail"),
        ("flwr", None, None, "fail"),
        ("torch", "2.13.0+cu130", None, "ok"),
        ("torch", "2.5.1", None, "fail"),
        ("torch", "3.0.0", None, "fail"),
        ("torchvision", "0.29.2", "operator torchvision::nms does not exist", "fail"),
        ("ray", "2.55.1", None, "ok"),
    ],
)
def test_packages(name, version, error, verdict):
    finding = checks.package(name, version, error)

    assert finding.verdict == verdict
    assert ("pip install" in finding.advice) == (verdict == "fail")
    if error:
        assert error in finding.found
        assert "of one release" in finding.advice


def test_ports():
    assert checks.port(8000, "SuperLink", None).verdict == "ok"
    taken = checks.port(8000, "SuperLink", "python3 flower-superlink (process 7)")
    assert taken.verdict == "warn"
    assert "process 7" in taken.found
    assert "change the port in superlink/start.sh" in taken.advice
    assert "RUNTIME_PORT=9095 sh start.sh" in checks.port(9094, "SuperNode", "x").advice


# Flower lets in what is signed at most 5 s ahead and less than 305 s behind.
@pytest.mark.parametrize(
    ("ahead", "uncertain", "verdict"),
    [
        (0.0, 1.0, "ok"),
        (2.0, 1.0, "ok"),
        (-30.0, 1.0, "ok"),
        (4.0, 0.1, "warn"),
        (5.5, 1.0, "warn"),  # it may be 4.5
        (6.1, 1.0, "fail"),
        (400.0, 1.0, "fail"),
        (-100.0, 1.0, "warn"),
        (-305.5, 1.0, "warn"),
        (-306.5, 1.0, "fail"),
        (None, 0.0, "warn"),
    ],
)
def test_clock(ahead, uncertain, verdict):
    assert checks.clock(ahead, uncertain).verdict == verdict


def test_the_tolerances_are_flowers_own():
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    assert checks.AHEAD == SYSTEM_TIME_TOLERANCE
    assert checks.BEHIND == SYSTEM_TIME_TOLERANCE + TIMESTAMP_TOLERANCE


@pytest.mark.parametrize("workers", range(1, checks.MOST + 1))
def test_a_safe_share_fits_so_many_workers_and_no_more(workers):
    share = checks.safe_share(workers)

    assert int(1 / share) == workers  # what Ray does with it
    assert round(share, 4) == share


def test_gpus_are_shared_by_memory_not_by_hope():
    two = [Gpu("A", 78 * GIB, 80 * GIB), Gpu("A", 20 * GIB, 80 * GIB)]

    finding = checks.gpus(two, 2 * GIB)  # 0.9 * 20 GiB hold nine workers, on the fuller one

    assert finding.verdict == "ok"
    assert "engine.gpus_per_worker = 0.1111: 18 workers of 2.0 GiB" in finding.advice
    assert "20.0 GiB of 80.0 GiB free" in finding.found


def test_a_full_gpu_fails_and_none_is_fine():
    full = checks.gpus([Gpu("A", GIB, 80 * GIB)], GIB)

    assert full.verdict == "fail"
    assert "end what fills the GPU" in full.advice
    assert checks.gpus([], GIB).verdict == "ok"


@pytest.mark.parametrize(
    ("available", "cpus", "verdict"), [(GIB - 1, 2, "fail"), (GIB, 2, "warn"), (2 * GIB, 2, "ok"), (64 * GIB, 8, "ok")]
)
def test_memory(available, cpus, verdict):
    assert checks.memory(available, cpus).verdict == verdict


def test_memory_says_how_many_workers_fit():
    assert "engine.workers = 3 at most" in checks.memory(3 * GIB + 5, 8).advice


@pytest.mark.parametrize(
    ("free", "total", "verdict"),
    [(3 * GIB, 10 * GIB, "ok"), (3 * GIB - 1, 10 * GIB, "warn"), (64 * 2**20, 16 * GIB, "warn"), (None, GIB, "ok")],
)
def test_shared_memory(free, total, verdict):
    assert checks.shared_memory(free, total).verdict == verdict


def test_a_containers_shared_memory_is_told_as_dockers_option():
    assert "--shm-size=5g" in checks.shared_memory(64 * 2**20, 16 * GIB).advice  # 0.3 * 16 = 4.8


@pytest.mark.parametrize(
    ("free", "verdict"), [(GIB - 1, "fail"), (GIB, "warn"), (5 * GIB - 1, "warn"), (5 * GIB, "ok")]
)
def test_disk(free, verdict):
    assert checks.disk(free, "/runs").verdict == verdict


@pytest.mark.parametrize(("limit", "verdict"), [(256, "fail"), (1024, "warn"), (4096, "ok"), (None, "ok")])
def test_open_files(limit, verdict):
    assert checks.open_files(limit).verdict == verdict


def test_data():
    assert checks.data("x.npz", "9 samples", None).verdict == "ok"
    broken = checks.data("x.npz", None, "no labels")
    assert broken.verdict == "fail"
    assert "no labels" in broken.found


@pytest.mark.parametrize(
    ("error", "tls", "loopback", "verdict"),
    [
        (None, True, False, "ok"),
        (None, False, True, "warn"),
        (None, False, False, "fail"),
        ("Connection refused", False, True, "fail"),
    ],
)
def test_superlink(error, tls, loopback, verdict):
    assert checks.superlink("a:8000", error, tls, loopback).verdict == verdict


@pytest.mark.parametrize(
    ("days", "error", "verdict"),
    [
        (365.0, None, "ok"),
        (30.0, None, "ok"),
        (29.9, None, "warn"),
        (None, None, "warn"),
        (-1.0, "certificate has expired", "fail"),
        (365.0, "unable to get local issuer certificate", "fail"),
        (365.0, "Hostname mismatch", "fail"),
    ],
)
def test_certificate(days, error, verdict):
    assert checks.certificate(days, error).verdict == verdict


def test_an_expired_certificate_is_called_so_first():
    finding = checks.certificate(-3.0, "certificate has expired")

    assert finding.found == "expired 3 days ago"
    assert finding.advice.startswith("run `fedkd deploy renew` where ca.key is kept")
