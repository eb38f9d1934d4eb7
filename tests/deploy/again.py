"""The sums of a deployed session, and those of one process from the same stored integers."""

import shutil
from pathlib import Path

from numpy.typing import NDArray

from protocols.messages import Opening, RoundPlan
from protocols.transcript import Transcript
from secure_natfl.deploy.demo import SITES
from secure_natfl.deploy.enrolled import read_enrolled
from secure_natfl.deploy.serve import SOCKET
from secure_natfl.deploy.site_file import own_config, read_site_file
from secure_natfl.federation import build
from secure_natfl.protection import Protection
from secure_natfl.seeds import Seeds
from secure_natfl.systems.natimg_fl import NatImgFL
from secure_natfl.terms import agree


def sums(root: Path) -> list[str]:
    """`aggregate_sha256` of each round's sums, as the deployed server signed them."""
    found: list[str] = []
    with Transcript(root / "server" / "run" / "transcript") as transcript:
        for number in range(read_enrolled(root / "server").config.system.rounds):
            latest = {said.group: said for said, _ in transcript.recall(Opening, number)}
            found += [opening.sha256 for opening in latest.values()]
    return found


def sums_in_one_process(root: Path, scratch: Path) -> list[str]:
    """The same session played in this process, on copies of the sites' ledgers and images.

    The ledgers have the integers of every round, so nothing is trained, drawn or charged again;
    everything after that is: keys, encryption, addition, opening.
    """
    enrolled = read_enrolled(root / "server")
    config = enrolled.config
    files = {name: read_site_file(root / name, name, config) for name in config.site_names()}
    for name in SITES:
        away = shutil.ignore_patterns(SOCKET, "flower")
        shutil.copytree(root / name, scratch / "sites" / name, ignore=away)
    own = own_config(config, files[SITES[0]], scratch)
    data = config.data.model_copy(update={"hospitals": [one.hospital for one in files.values()]})
    ledger = own.ledger.model_copy(update={"folder": str(scratch / "sites")})
    config = config.model_copy(update={"data": data, "ledger": ledger})
    federation = build(config, lambda name: name.encode().ljust(32))
    seeds = Seeds(bytes(32), seeded=False)
    system = NatImgFL(config, federation, seeds)
    layout = system.layout(config.proxies.per_round)
    groups = {site.name: system.group_of(site) for site in federation.sites}
    terms = agree(config, federation, layout, system.weights(), groups)
    (scratch / "run").mkdir()
    arguments = (config, federation, terms, layout, enrolled.session, scratch / "run", seeds)
    found: list[str] = []
    with Protection(*arguments) as protection:
        for number in range(config.system.rounds):
            outcome, _ = protection.play(number, _rows(root, number), {})
            found += [one.sha256 for one in outcome.aggregates.values()]
    return found


def _rows(root: Path, number: int) -> NDArray:
    with Transcript(root / "server" / "run" / "transcript") as transcript:
        first, *_ = (plan for plan, _ in transcript.recall(RoundPlan, number))
    return first.subset.astype("int64")
