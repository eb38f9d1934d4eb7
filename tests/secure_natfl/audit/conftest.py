"""One honest run and its audit, and copies of both to be damaged."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from secure_natfl.audit.conduct import Audited, audit
from secure_natfl.config import Config
from secure_natfl.execute import execute


@pytest.fixture(scope="session")
def run(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of three sites and two rounds, with noise and shared keys."""
    folder = tmp_path_factory.mktemp("audited") / "D"
    config = tiny("run.seed=system", "run.baselines=false", "privacy.mechanism=shard-teachers")
    execute(config, folder, "natfl run tiny", Console(file=io.StringIO()))
    return folder


@pytest.fixture(scope="session")
def done(run: Path) -> Audited:
    return audit(run)


@pytest.fixture
def copy(run: Path, done: Audited, tmp_path: Path) -> Path:
    """The run and its evidence, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "D", symlinks=True))
