"""The comparisons of a run that learns from sums: every site alone, and all data in one place.

Both start as the federated networks do, and see each image as often as rounds × local epochs say.
"""

from __future__ import annotations

from typing import Final

from torch import nn

from secure_natfl.config import Config
from secure_natfl.federation import Federation, Site, joined
from secure_natfl.methods.plain_models import started, train_plain
from secure_natfl.progress import Stages
from secure_natfl.run_folder import RunFolder, load_network, save_network
from secure_natfl.system_tables import Summing
from secure_natfl.training import Examples, Schedule

LABELS: Final = {
    "local_only": ("Local only", "Each site trains on its own images, as often as in the run."),
    "pooled": ("Pooled data", "One network on all sites' training images of a task, in one place."),
}
_FILE = "network.safetensors"


def train_arms(
    config: Config, federation: Federation, folder: RunFolder, stages: Stages
) -> dict[str, dict[str, nn.Module]]:
    """Baseline → site → network; each is a step of the run's folder."""
    table, seeds = config.system, folder.seeds
    if not isinstance(table, Summing):
        return {}
    epochs = table.rounds * table.local_epochs

    def step(name: str, label: str, site: Site, examples: Examples) -> nn.Module:
        network = started(config, federation, site.architecture, site.task, seeds)
        if folder.done(name):
            load_network(network, folder.intact(name) / _FILE)
            return network.eval()
        schedule = Schedule(epochs, max(2, config.models.batch // 2), table.learning_rate)
        with stages.stage("Baselines", label) as progress:
            train_plain(network, examples, schedule, seeds.torch(name), progress=progress)
        folder.finish(name, lambda part: save_network(network, part / _FILE))
        return network

    local = {}
    for site in federation.sites:
        name = f"baseline-local_only-{site.name}"
        local[site.name] = step(name, f"local only {site.name}", site, site.train)
    pooled: dict[str, nn.Module] = {}
    for task, sites in _by_task(federation).items():
        whole = joined([site.train for site in sites])
        network = step(f"baseline-pooled-{task}", f"pooled data {task}", sites[0], whole)
        pooled |= {site.name: network for site in sites}
    return {"local_only": local, "pooled": pooled}


def _by_task(federation: Federation) -> dict[str, list[Site]]:
    found: dict[str, list[Site]] = {}
    for site in federation.sites:
        found.setdefault(site.task.name, []).append(site)
    return found
