"""A deployed federation of three phantom sites: real parties, real keys, little of everything."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from secure_natfl.deploy.demo import SITES, write_kit
from secure_natfl.deploy.site import SiteParty

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test touches the user's cache or state; the parties' processes inherit it."""
    base = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
        patch.setenv("XDG_STATE_HOME", str(base / "state"))
        yield base


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys, list and site files of a session of two rounds; never written to again."""
    root = tmp_path_factory.mktemp("kit") / "k"
    write_kit(root, rounds=2, images=60)
    return root


@pytest.fixture
def fresh(kit: Path, tmp_path: Path) -> Path:
    """A copy of the kit, as it was handed out."""
    shutil.copytree(kit, tmp_path / "k")
    return tmp_path / "k"


@pytest.fixture
def site(fresh: Path) -> Iterator[SiteParty]:
    """The first site, at work in its own folder."""
    party = SiteParty(fresh / SITES[0])
    yield party
    party.close()


@pytest.fixture
def digest_of() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a folder but its log of refusals."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (file for file in sorted(folder.rglob("*")) if file.is_file())
        kept = (file for file in files if file.name not in ("refusals.jsonl", "party.log"))
        return {str(file.relative_to(folder)): file.read_bytes() for file in kept}

    return read
