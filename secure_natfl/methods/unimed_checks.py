"""What a configuration of UniMed cannot ask for."""

from __future__ import annotations

from protocols.errors import ConfigError
from secure_natfl.config import Config, DpSgd
from secure_natfl.federation import Federation
from secure_natfl.methods.plain_models import check_flat
from secure_natfl.system_tables import UniMed


def check_unimed(config: Config, options: UniMed, federation: Federation) -> None:
    """Called once, before anything is trained; ConfigError names the key and what would work.

    ModelError where the images are volumes.
    """
    if config.data.channels != 1:
        raise ConfigError(
            "the encoder sees grey images", where="data.channels", fix="leave it at 1"
        )
    if isinstance(config.privacy, DpSgd):
        _check_private(config.privacy, options)
    if config.run.baselines and any(site.train.form == "mask" for site in federation.sites):
        raise ConfigError(
            "the baselines of a run have no ViT for masks", where="run.baselines", fix="set false"
        )
    _check_joins(options, list(federation.hospitals))
    for site in federation.sites:
        check_flat(site.architecture, site.train.images)
        if site.architecture != config.models.central:
            raise ConfigError(
                f"{site.architecture} is not the shared encoder",
                where=site.name,
                why="one encoder goes from stage to stage, and only equal ones can be averaged",
                fix=f'set its architectures to ["{config.models.central}"]',
            )


def _check_joins(options: UniMed, hospitals: list[str]) -> None:
    if strangers := sorted(set(options.joins) - set(hospitals)):
        raise ConfigError(
            f"no hospital is called {', '.join(strangers)}",
            where="system.joins",
            fix=f"name one of {', '.join(hospitals)}",
        )
    if late := [name for name, stage in options.joins.items() if stage > options.rounds]:
        raise ConfigError(
            f"{', '.join(late)} would join after the last stage, which is {options.rounds}",
            where="system.joins",
            fix=f"take a stage from 1 to {options.rounds}, or 0 to hold a task out",
        )
    if all(options.joins.get(name, 1) != 1 for name in hospitals):
        raise ConfigError(
            "no task takes part in the first stage",
            where="system.joins",
            fix="let the first tasks join at stage 1, as those do that are not named",
        )


def _check_private(privacy: DpSgd, options: UniMed) -> None:
    if privacy.layers == "head":
        raise ConfigError(
            "a head is never sent, and the encoder would stay as it is",
            where="privacy.layers",
            fix='take "last" or "network"',
        )
    if options.anchor:
        raise ConfigError(
            "dp-sgd has its own local loss, of labels alone",
            where="system.anchor",
            fix="leave it at 0 under dp-sgd",
        )
