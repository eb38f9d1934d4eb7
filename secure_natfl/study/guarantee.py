"""What a setting's ε is of. Figures of ε that differ in any of this are not comparable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from protocols.accounting import REPLACE_ONE
from protocols.client_gaussian import CLIENT
from protocols.promises import PROMISES
from secure_natfl.config import ClientGaussian, Config, DpSgd, NoNoise
from secure_natfl.federation import Site
from secure_natfl.report.formats import power
from secure_natfl.site_state import relation_of
from secure_natfl.study.grid import Setting


@dataclass(frozen=True)
class Guarantee:
    """Relation, δ and adversary; and the unit, where it is not that of each site.

    colluders: clients of a group that may join the adversary, "all" of them or a number.
    unit: "" for the site's own, a patient or an image.
    """

    relation: str
    delta: float
    colluders: str
    adversary: str
    unit: str = ""

    @property
    def words(self) -> str:
        """Such as "one unit added or removed, δ = 1e-5, against everybody but the site itself"."""
        change = "replaced" if self.relation == REPLACE_ONE else "added or removed"
        of = "client" if self.unit == CLIENT else "unit"
        return f"one {of} {change}, δ = {power(self.delta)}, against {self.adversary}"


def guarantee_of(config: Config) -> Guarantee | None:
    """By the configuration alone; None without noise."""
    table = config.privacy
    if isinstance(table, NoNoise):
        return None
    relation = relation_of(config)
    if isinstance(table, DpSgd):
        return Guarantee(relation, table.delta, "all", "everybody but the site itself")
    clients = "1 client" if table.colluders == 1 else f"{table.colluders} clients"
    return Guarantee(
        relation,
        table.delta,
        str(table.colluders),
        f"{PROMISES[config.mode].adversary}, with up to {clients} of a group",
        CLIENT if isinstance(table, ClientGaussian) else "",
    )


def by_guarantee(settings: Iterable[Setting]) -> dict[Guarantee, list[Setting]]:
    """The settings that have noise, by what their ε is of."""
    found: dict[Guarantee, list[Setting]] = {}
    for setting in settings:
        given = guarantee_of(setting.config)
        if given is not None:
            found.setdefault(given, []).append(setting)
    return found


def units_of(sites: Iterable[Site]) -> str:
    """What a unit of the sites is: "patient", or "image at guangzhou, patient at hannover, nih"."""
    hospitals: dict[str, list[str]] = {}
    for site in sites:
        hospitals.setdefault(site.unit, []).append(site.hospital)
    if len(hospitals) == 1:
        return next(iter(hospitals))
    named = (f"{unit} at {', '.join(dict.fromkeys(at))}" for unit, at in sorted(hospitals.items()))
    return ", ".join(named)
