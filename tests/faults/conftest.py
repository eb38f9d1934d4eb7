"""Federations on disks of their own; small disks that run full."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.federation import Ended, Federation


@pytest.fixture
def federation(tmp_path: Path) -> Callable[..., Federation]:
    count = iter(range(1000))

    def make(**changes: object) -> Federation:
        folder = tmp_path / f"federation-{next(count)}"
        folder.mkdir()
        return Federation(folder, **changes)

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MiB; skipped where it may not be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system can only be mounted by root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def played(federation) -> Federation:
    """Three rounds."""
    made = federation()
    for number in range(3):
        assert made.attempt(number) is Ended.WELL
    made.check()
    return made
