"""The comparisons of a run, each trained once and kept as a step of its folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from secure_natfl import baselines
from secure_natfl.config import Config
from secure_natfl.fine_tuning import fresh
from secure_natfl.models import Network
from secure_natfl.progress import Stages
from secure_natfl.run_folder import RunFolder, load_network, save_network
from secure_natfl.systems.natimg_fl import NatImgFL, Rows
from secure_natfl.systems.speaking import Speaking
from secure_natfl.terms import Terms
from secure_natfl.training import Progress

Maker = Callable[[Progress], Network]
_FILE = "network.safetensors"


def train_arms(
    config: Config,
    system: NatImgFL,
    terms: Terms,
    speaking: dict[str, Speaking],
    networks: dict[str, Network],
    asked: Rows,
    folder: RunFolder,
    stages: Stages,
) -> dict[str, dict[str, Network]]:
    """Baseline → site ("" for one network of all) → network; `asked`: all proxies of the run."""
    federation, seeds = system.federation, folder.seeds
    central = networks[config.models.central]
    arms: dict[str, dict[str, Network]] = {"local_only": {}}

    def step(arm: str, site: str, public: Network, make: Maker) -> Network:
        name = f"baseline-{arm}" + (f"-{site}" if site else "")
        if folder.done(name):
            heads = len(system.heads) if arm == "noise_proxies" else 1
            restored = seeds.torch("restored")
            network = fresh(public, len(federation.task.classes), restored, heads)
            load_network(network, folder.intact(name) / _FILE)
            return network.eval()
        label = baselines.LABELS[arm][0].lower()
        with stages.stage("Baselines", f"{label} {site}".strip()) as progress:
            made = make(progress)
        folder.finish(name, lambda part: save_network(made, part / _FILE))
        return made

    for site in federation.sites:
        public = networks[site.architecture]
        make = partial(baselines.local_only, config, federation, site, public, seeds)
        arms["local_only"][site.name] = step("local_only", site.name, public, make)
    makers: dict[str, Maker] = {
        "pooled": partial(baselines.pooled, config, federation, central, seeds),
        "plain_mean": partial(
            baselines.plain_mean, config, federation, arms["local_only"], central, asked, seeds
        ),
        "noise_proxies": partial(
            baselines.noise_proxies, config, system, terms, speaking, central, seeds
        ),
    }
    for arm, make_one in makers.items():
        arms[arm] = {"": step(arm, "", central, make_one)}
    return arms
