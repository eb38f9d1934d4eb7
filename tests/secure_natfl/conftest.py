"""A small federation of phantoms for the package's tests: every part is real, only little of it."""

import io
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from protocols.quantize import Layout
from secure_natfl.config import Config
from secure_natfl.data.records import Records
from secure_natfl.federation import Federation, Site, build, examples
from secure_natfl.fine_tuning import fresh
from secure_natfl.models import Network
from secure_natfl.progress import Stages
from secure_natfl.seeds import Seeds
from secure_natfl.setup import public_networks, speaking_inputs
from secure_natfl.systems.natimg_fl import NatImgFL, Returned
from secure_natfl.systems.speaking import Speaking
from secure_natfl.terms import Terms, agree
from secure_natfl.toml_config import load

torch.set_num_threads(1)

ROUND = 40
TINY = f"""
[data]
size = 32

[[data.hospitals]]
name = "children"
kind = "phantom"
hospital = "children"
images = 150
sites = 3
architectures = ["test_resnet", "test_efficientnet"]

[proxies]
images = 120
per_round = {ROUND}

[models]
central = "test_resnet"
pretrain_epochs = 1

[system]
rounds = 2
local_epochs = 1
head_steps = 10
distill_epochs = 1

[privacy]
mechanism = "shard-teachers"
shards = 5
clip = 20
"""


def site_key(hospital: str) -> bytes:
    return hospital.encode().ljust(32, b"k")


@dataclass
class World:
    """A federation up to its first contribution; `folder` is where its sites keep things."""

    config: Config
    federation: Federation
    networks: dict[str, Network]
    speaking: dict[str, Speaking]
    folder: Path
    seeds: Seeds

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.federation.sites

    @property
    def rows(self) -> np.ndarray:
        """The proxies of the first round."""
        return np.arange(self.config.proxies.per_round)

    def system(self, config: Config | None = None) -> NatImgFL:
        return NatImgFL(config or self.config, self.federation, self.seeds)

    def layout(self, config: Config | None = None) -> Layout:
        return self.system(config).layout(len(self.rows))

    def agree(self, config: Config | None = None) -> Terms:
        system = self.system(config)
        groups = {site.name: system.group_of(site) for site in self.sites}
        return agree(
            config or self.config, self.federation, self.layout(config), system.weights(), groups
        )

    def speaking_of(self, site: Site, config: Config | None = None) -> Speaking:
        """What `site`, changed or not, would speak from."""
        alone = replace(self.federation, sites=(site,))
        stages = Stages(Console(file=io.StringIO()))
        made = speaking_inputs(
            config or self.config, alone, self.networks, self.folder, self.seeds, stages
        )
        return made[site.name]

    def network(self, architecture: str, purpose: str, groups: int = 1) -> Network:
        classes = len(self.federation.task.classes)
        return fresh(self.networks[architecture], classes, self.seeds.torch(purpose), groups)

    def returned(self) -> Returned:
        """What a server might return to everybody after the first round."""
        rows = self.rows
        logits = torch.randn(len(rows), len(self.federation.task.classes), generator=_generator())
        return Returned(rows, logits)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def make_world(config: Config, folder: Path) -> World:
    federation = build(config, site_key)
    stages, seeds = Stages(Console(file=io.StringIO())), Seeds.of_study(0)
    networks = public_networks(config, federation, stages)
    speaking = speaking_inputs(config, federation, networks, folder, seeds, stages)
    return World(config, federation, networks, speaking, folder, seeds)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test touches the user's cache or the sites' real state."""
    base = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
        patch.setenv("XDG_STATE_HOME", str(base / "state"))
        yield base


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """The small federation's configuration with changes, "table.key=value" each."""
    file = tmp_path_factory.mktemp("config") / "tiny.toml"
    file.write_text(TINY)
    return lambda *changes: load(str(file), ["run.seed=0", *changes])


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """As `tiny`, with a fourth site, so that one may drop out."""
    file = tmp_path_factory.mktemp("config") / "four.toml"
    file.write_text(TINY.replace("sites = 3", "sites = 4").replace("images = 150", "images = 200"))
    return lambda *changes: load(str(file), ["run.seed=0", *changes])


@pytest.fixture(scope="session")
def world(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> World:
    """The small federation, noise included."""
    return make_world(tiny(), tmp_path_factory.mktemp("sites"))


@pytest.fixture(scope="session")
def terms(world: World) -> Terms:
    return world.agree()


@pytest.fixture(scope="session")
def planned(world: World, tiny: Callable[..., Config]) -> Callable[..., tuple[Config, Terms]]:
    """Configuration and terms for some changes; calibrating takes a second, so once each."""
    kept: dict[tuple[str, ...], tuple[Config, Terms]] = {}

    def plan(*changes: str) -> tuple[Config, Terms]:
        if changes not in kept:
            config = tiny(*changes)
            kept[changes] = (config, world.agree(config))
        return kept[changes]

    return plan


@pytest.fixture(scope="session")
def multi_label(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Three findings per image, a third of them unknown, from a file without patients."""
    folder = tmp_path_factory.mktemp("multi_label")
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (90, 32, 32), dtype=np.uint8)
    labels = rng.integers(-1, 2, (90, 3))
    parts = {"train": slice(0, 60), "val": slice(60, 70), "test": slice(70, 90)}
    arrays = {f"{part}_images": images[rows] for part, rows in parts.items()}
    arrays |= {f"{part}_labels": labels[rows] for part, rows in parts.items()}
    np.savez(folder / "findings.npz", **arrays)
    (folder / "config.toml").write_text(
        TINY.replace('kind = "phantom"', 'kind = "medmnist"').replace(
            'hospital = "children"\nimages = 150', f'path = "{folder}/findings.npz"'
        )
    )
    config = load(str(folder / "config.toml"), ["run.seed=0", f"ledger.folder={folder}/sites"])
    return make_world(config, folder / "sites")


@pytest.fixture(scope="session")
def replaced() -> Callable[[Site, str, np.ndarray, np.ndarray], Site]:
    """A site at which one patient's records are others, under the same identifier."""

    def replace_patient(site: Site, patient: str, images: np.ndarray, labels: np.ndarray) -> Site:
        records = site.records
        old = [row for row, name in enumerate(records.patients) if name == patient]
        others = [row for row in range(len(records)) if row not in old]
        before = [row for row in others if row < old[0]]
        after = [row for row in others if row > old[0]]
        made = Records(
            np.concatenate([records.images[before], images, records.images[after]]),
            np.concatenate([records.labels[before], labels, records.labels[after]]),
            records.class_names,
            (
                *(records.patients[row] for row in before),
                *[patient] * len(images),
                *(records.patients[row] for row in after),
            ),
            records.unit,
            records.name,
        )
        return replace(site, records=made, train=examples(made, site.train.images.shape[-1]))

    return replace_patient


@pytest.fixture(scope="session")
def only() -> Callable[[Site, Sequence[int]], Site]:
    """A site with some of its training images."""

    def subset(site: Site, rows: Sequence[int]) -> Site:
        records = site.records.take(list(rows))
        return replace(site, records=records, train=examples(records, site.train.images.shape[-1]))

    return subset


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """While it lasts, no file grows beyond a kilobyte: the system's own refusal, as of a disk."""

    @contextmanager
    def limited() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
