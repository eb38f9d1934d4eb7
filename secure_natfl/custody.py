"""Who keeps keys in a run, mode by mode: enrolled before the first round, then put on the wire.

A simulation's key holders live in this process, save the decryptor: that has one of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from protocols.chain import SigningKey
from protocols.messages import Mode
from protocols.parties import Client, Server
from protocols.policy import DECRYPTOR, SERVER, Enrolment, holder_name, threshold_of
from protocols.secagg.topology import Topology
from protocols.share_holder import ShareHolder
from protocols.transport import Beside, HolderProcess, Wire
from secure_natfl.site_state import secret

_TOPOLOGIES: Final[Mapping[Mode, tuple[str, str]]] = {
    "ckks/threshold": ("threshold", "Threshold"),
    "ckks/decryptor": ("decryptor", "Decryptor"),
    "ring/decryptor": ("ring", "Ring"),
    "plain/none": ("plain", "Plain"),
    "slots/shared": ("slots", "Slots"),
}


class Custody:
    """The key holders of one run; `close` ends what was started.

    `holders` (name → verify key), `threshold` and `malicious` enter the enrolment.
    """

    def __init__(
        self,
        mode: Mode,
        server: SigningKey,
        clients: Mapping[str, SigningKey],
        sites: Path,
        folder: Path,
    ) -> None:
        self._mode, self._folder = mode, folder
        self._keys: dict[str, SigningKey] = {}
        self._sharing: list[ShareHolder] = []
        self._process: HolderProcess | None = None
        self.threshold, self.malicious = 1, 0
        self.holders = {SERVER: server.public.hex()}
        if mode == "ckks/threshold":
            self._keys = {
                holder_name(site): SigningKey(secret(sites / site, "holder", os.urandom))
                for site in clients
            }
            self.threshold, self.malicious = threshold_of(len(clients))
            self.holders = {name: key.public.hex() for name, key in self._keys.items()}
        elif mode == "slots/shared":
            self.holders = {holder_name(site): key.public.hex() for site, key in clients.items()}
        elif mode != "plain/none":
            self._process = HolderProcess(folder / "decryptor")
            self.holders = {DECRYPTOR: self._process.verify_key.hex()}

    def assemble(self, server: Server, clients: Mapping[str, Client], wire: Wire) -> Topology:
        """Put the holders of an enrolment on the wire; the topology that plays its rounds."""
        self._connect(server.enrolment, wire)
        module, name = _TOPOLOGIES[self._mode]
        # TenSEAL is loaded only for the modes that it serves.
        made: Any = getattr(import_module(f"protocols.secagg.{module}"), name)
        if self._mode == "slots/shared":
            return _slots(made, server, clients, wire)
        topology: Topology = made(server, clients, wire)
        return topology

    def close(self) -> None:
        """End the decryptor's process, destroy live keys, close every journal."""
        if self._process is not None:
            self._process.close()
        for holder in self._sharing:
            holder.close()

    def _connect(self, enrolment: Enrolment, wire: Wire) -> None:
        if self._process is not None:
            self._process.enrol(enrolment)
            wire.connect(DECRYPTOR, self._process)
        for name, key in self._keys.items():
            holder = ShareHolder(self._folder / "holders" / name, enrolment, name, key)
            self._sharing.append(holder)
            wire.connect(name, Beside(holder.answer))


def _slots(made: Any, server: Server, clients: Mapping[str, Client], wire: Wire) -> Topology:
    """The configuration has asked for it as unsafe; the shared key does not outlive the run."""
    from protocols.slots import SLOTS18_140
    from protocols.tenseal_slots import SlotsSecret

    topology: Topology = made(server, clients, wire, SlotsSecret(SLOTS18_140), unsafe=True)
    return topology
