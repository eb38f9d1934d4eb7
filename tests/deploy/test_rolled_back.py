"""A site whose ledger is put back in mid-session says nothing until it has the latest one."""

import json
import shutil
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from protocols.errors import ProtocolError
from protocols.messages import Contribution
from secure_natfl.deploy.demo import SITES
from secure_natfl.deploy.loopback import Beside
from secure_natfl.deploy.party import Absent, Phase
from secure_natfl.deploy.server import Coordinator
from secure_natfl.deploy.site import SiteParty

NAME = SITES[0]
FILES = ("ledger.db", "ledger.db-wal", "ledger.db-shm")


class Restored(Beside):
    """Sites of this process; before the first question of `phase` one starts on an old ledger."""

    def __init__(self, root: Path, kept: Path) -> None:
        super().__init__({name: SiteParty(root / name) for name in SITES})
        self._root, self._kept = root, kept
        self.phase: Phase = "contribute"

    def ask(
        self, questions: Mapping[str, bytes], phase: Phase, deadline: float
    ) -> Mapping[str, bytes | Absent]:
        if phase == self.phase:
            if self._kept.exists():
                self.restart(self._kept)
            else:
                self.keep(self._kept)
        return super().ask(questions, phase, deadline)

    def keep(self, at: Path) -> None:
        """Copy the site's ledger."""
        at.mkdir()
        for name in FILES:
            if (self._root / NAME / name).exists():
                shutil.copyfile(self._root / NAME / name, at / name)

    def restart(self, ledger: Path) -> None:
        """Stop the site, put this ledger in the place of its own, and start it again."""
        self._parties[NAME].close()
        for name in FILES:
            (self._root / NAME / name).unlink(missing_ok=True)
        for file in ledger.iterdir():
            shutil.copyfile(file, self._root / NAME / file.name)
        self._parties[NAME] = SiteParty(self._root / NAME)

    def close(self) -> None:
        for party in self._parties.values():
            party.close()


def test_a_ledger_put_back_in_mid_session_charges_and_sends_nothing(fresh: Path, tmp_path: Path):
    exchange = Restored(fresh, tmp_path / "old")
    with Coordinator(fresh / "server", exchange, Console(file=StringIO())) as server:
        server._meet()
        server._round(0)
        exchange.keep(tmp_path / "latest")
        assert len(exchange._parties[NAME]._work.ledger.lines()) == 1
        phases: tuple[Phase, ...] = ("plan", "contribute")
        for phase in phases:
            exchange.phase = phase
            with pytest.raises(ProtocolError, match="too few"):
                server._attempt(1)
            last = (fresh / NAME / "refusals.jsonl").read_text().splitlines()[-1]
            assert json.loads(last)["phase"] == phase
            assert "has 0 lines, and had 1 before" in json.loads(last)["what"]
            assert not exchange._parties[NAME]._work.ledger.lines()
            sent = [one for one in server.transcript.entries.of_round(1) if one.sender == NAME]
            assert Contribution.kind not in {one.kind for one in sent}
            exchange.restart(tmp_path / "latest")
        exchange.phase = "meet"
        assert not server._attempt(1).absent
        assert len(exchange._parties[NAME]._work.ledger.lines()) == 2
    exchange.close()
