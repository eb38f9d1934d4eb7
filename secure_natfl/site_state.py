"""What a site keeps on its own disk: its secrets and its ledger.

Phantoms belong to the run and stay in its folder. Real images outlive a run, and so does the
ledger that charges them: it stays in the user's state folder and spans all runs, unless
`ledger.folder` names another place.
"""

from __future__ import annotations

import os
from pathlib import Path

from protocols.accounting import ADD_OR_REMOVE_ONE, REPLACE_ONE
from protocols.chain import RandomBytes
from protocols.durable import written
from protocols.errors import LedgerError, RunFolderError
from protocols.ledger import Ledger
from secure_natfl.config import ClientGaussian, Config, DpSgd, PhantomHospital, RemoteHospital
from secure_natfl.data.records import Records


def state_folder(config: Config, run_folder: Path) -> Path:
    """The folder that holds one folder per site."""
    if config.ledger.folder != "auto":
        return Path(config.ledger.folder)
    kinds = PhantomHospital | RemoteHospital
    if all(isinstance(hospital, kinds) for hospital in config.data.hospitals):
        return run_folder / "sites"
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "secure_natfl" / "sites"


def secret(folder: Path, name: str, random: RandomBytes) -> bytes:
    """32 secret bytes kept under `name` in a site's folder; drawn once, readable by its owner."""
    file = folder / f"{name}.key"
    try:
        if file.exists():
            return file.read_bytes()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        drawn = random(32)
        part = file.with_suffix(".part")
        with written("secret"):
            drawn_to = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(drawn_to, "wb") as out:
                out.write(drawn)
                out.flush()
                os.fsync(out.fileno())
            part.replace(file)
    except OSError as error:
        raise RunFolderError(
            "a site's secret cannot be kept",
            where=str(folder),
            why=str(error),
            fix="make the folder writable, or name another in ledger.folder",
        ) from None
    return drawn


def relation_of(config: Config) -> str:
    """The neighbouring relation of the configured mechanism's charges."""
    adds = isinstance(config.privacy, DpSgd | ClientGaussian)
    return ADD_OR_REMOVE_ONE if adds else REPLACE_ONE


def open_ledger(config: Config, folder: Path, site: str, records: Records) -> Ledger:
    """The site's ledger for these patients, at `folder`/ledger.db.

    Patients are recognised under the site's own key, so nobody else can test for one. LedgerError
    where the ledger's relation is not that of the configured mechanism.
    """
    patients = records.patients_digest(secret(folder, "patients", os.urandom))
    budget = config.ledger.budget_epsilon

    def opened(relation: str) -> Ledger:
        return Ledger(
            folder / "ledger.db",
            site,
            patients,
            relation=relation,
            budget_epsilon=None if budget == "none" else budget,
            delta=getattr(config.privacy, "delta", 1e-5),
        )

    wanted = relation_of(config)
    try:
        return opened(wanted)
    except LedgerError:
        (other,) = {ADD_OR_REMOVE_ONE, REPLACE_ONE} - {wanted}
        opened(other).close()
    going_on = '"dp-sgd"' if wanted == REPLACE_ONE else '"shard-teachers"'
    raise LedgerError(
        f"this ledger holds charges under {other}, and {config.privacy.mechanism} charges under "
        f"{wanted}",
        where=str(folder / "ledger.db"),
        why="figures under different neighbouring relations do not add up",
        fix=f"go on with privacy.mechanism = {going_on}; or name another ledger.folder, and state "
        "both figures side by side: what is spent here stays spent",
    )
