"""A site's own file, `site.toml`: where its images are, and what it lets a federation do.

Nobody else reads it. What it forbids is refused at the site, whatever the server signed.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, FiniteFloat, ValidationError

from protocols.errors import ConfigError, ProtocolError
from protocols.messages import RoundPlan
from secure_natfl.config import Config, Hospital, Section
from secure_natfl.config import Ledger as LedgerTable
from secure_natfl.deploy.agreement import Agreement

SITE_FILE: Final = "site.toml"


class Policy(Section):
    """What the site allows, checked before each answer that could cost it something.

    max_epsilon: what its patients may spend in all sessions together; the ledger's budget too.
    proxies: SHA-256 of each set of public images that it has looked at and allows.
    """

    max_epsilon: Annotated[FiniteFloat, Field(gt=0)]
    max_rounds: Annotated[int, Field(ge=1)]
    min_participants: Annotated[int, Field(ge=3)] = 3
    proxies: Annotated[list[str], Field(min_length=1)]
    architectures: Annotated[list[str], Field(min_length=1)]
    share_scores: bool = False
    """Whether figures on the site's test images may enter the consortium's report."""

    def check_terms(self, site: str, agreed: Agreement) -> None:
        """Before anything is answered: the session's terms; ProtocolError for what is forbidden."""
        config, plan = agreed.config, agreed.terms.noise_plan
        epsilon = plan.spending(site).epsilon if plan else float("inf")
        own = next(one for one in agreed.federation.sites if one.name == site)
        asked = agreed.federation.proxy_digest
        wanted = {own.architecture, config.models.central}
        group = next(names for names in agreed.terms.groups.values() if site in names)
        _demand(epsilon <= self.max_epsilon, f"ε = {epsilon:.4g} is above {self.max_epsilon:g}")
        rounds = config.system.rounds
        _demand(rounds <= self.max_rounds, f"{rounds} rounds are more than {self.max_rounds}")
        _demand(asked in self.proxies, f"the public images {asked[:16]}… were not allowed")
        strange = wanted - set(self.architectures)
        _demand(not strange, f"architectures {', '.join(sorted(strange))} were not allowed")
        fewest = min(len(group), config.aggregation.min_participants)
        _demand(fewest >= self.min_participants, f"groups of {fewest} are below the site's floor")

    def check_plan(self, plan: RoundPlan, site: str) -> None:
        """Before a round: its number and its groups."""
        _demand(plan.round < self.max_rounds, f"round {plan.round} is one too many")
        for group in plan.groups_of(site):
            fewest = max(group.least, plan.floors.participants)
            _demand(fewest >= self.min_participants, f"sums of {fewest} are below the site's floor")


class SiteFile(Section):
    """The whole file. hospital: as in a run's configuration. root: where relative paths start."""

    hospital: Hospital
    root: str = "."
    policy: Policy


def read_site_file(folder: Path, name: str, config: Config) -> SiteFile:
    """A site's own file; what the consortium's configuration says of it is filled in.

    ConfigError for a file that is missing or has unknown keys, and for a name of no hospital.
    """
    path, tables = folder / SITE_FILE, config.site_names()
    if name not in tables:
        raise ConfigError(
            f"the consortium knows no hospital {name}",
            where=str(folder),
            fix=f"name the folder as the hospital: {', '.join(tables)}",
        )
    table = tables[name]
    try:
        stated: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        given = {"name": name, "group": table.group, "task": table.task}
        given["architectures"] = list(table.architectures)
        stated["hospital"] = dict(stated["hospital"]) | given
        return SiteFile.model_validate(stated)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(
            str(fault["msg"]), where=f"{path}, {'.'.join(map(str, fault['loc']))}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "the site's own file cannot be used",
            where=str(path),
            why=str(error),
            fix="write it as docs/guides/deploy.md shows: [hospital] and [policy]",
        ) from None


def own_config(config: Config, own: SiteFile, folder: Path) -> Config:
    """The consortium's configuration with this site's images and ledger alone."""
    data = config.data.model_copy(update={"hospitals": [own.hospital], "root": own.root})
    ledger = LedgerTable(folder=str(folder.parent), budget_epsilon=own.policy.max_epsilon)
    return config.model_copy(update={"data": data, "ledger": ledger})


def _demand(holds: bool, why: str) -> None:
    if not holds:
        raise ProtocolError(
            "the site's policy forbids it",
            where=SITE_FILE,
            why=why,
            fix="talk to the consortium, or change the site's own policy",
        )
