"""The exchange over a SuperLink that answers with errors now and then."""

from itertools import cycle
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr", reason="needs the extra flower")

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from secure_natfl.deploy.flower import FlowerExchange
from secure_natfl.deploy.party import Absent

KEY = ec.generate_private_key(ec.SECP384R1()).public_key()
ERRORS = (
    httpx.ConnectTimeout("busy"),
    httpx.HTTPStatusError("500", request=httpx.Request("POST", "https://x"), response=None),
)


class Busy:
    """A grid with one machine, which fails at every third call, in turn in either way."""

    def __init__(self) -> None:
        self.asked: list[Message] = []
        self._fails, self._errors = cycle((True, False, False)), cycle(ERRORS)

    def _may_fail(self) -> None:
        if next(self._fails):
            raise next(self._errors)

    def get_nodes(self) -> list[SimpleNamespace]:
        self._may_fail()
        pem = KEY.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return [SimpleNamespace(public_key=pem, status="online", node_id=7)]

    def push_messages(self, messages: list[Message]) -> list[str]:
        self._may_fail()
        self.asked += messages
        return ["number"]

    def pull_messages(self, numbers: list[str]) -> list[SimpleNamespace]:
        self._may_fail()
        metadata = SimpleNamespace(reply_to_message_id=numbers[0])
        content = self.asked[-1].content
        return [SimpleNamespace(metadata=metadata, content=content, has_error=lambda: False)]


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Flower tells a ServerApp's process before it runs."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def test_a_superlink_that_fails_now_and_then_costs_time_alone() -> None:
    node = KEY.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    exchange = FlowerExchange(Busy(), SimpleNamespace(nodes={"north": node}))
    assert exchange.ask({"north": b"question"}, "meet", 20.0) == {"north": b"question"}


def test_a_superlink_that_is_gone_leaves_everybody_absent() -> None:
    grid = Busy()
    grid._fails = cycle((True,))
    node = KEY.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    found = FlowerExchange(grid, SimpleNamespace(nodes={"north": node})).ask(
        {"north": b"question"}, "meet", 0.5
    )
    assert found == {"north": Absent("its machine is away")}
