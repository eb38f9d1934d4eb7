# mypy: disable-error-code="import-not-found,import-untyped"
"""Flower's SecAgg+: its client mod and its server workflow, driven in one process.

`secaggplus_mod` answers the four stages at a client and `SecAggPlusWorkflow` asks them at the
server; messages pass as Flower's protobuf records. All eight clients are neighbours, five shares
unmask, everything else is the default: values clipped to ±8, 2^22 steps, masks modulo 2^32,
weights up to 1,000.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, ClassVar, Final

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import (
    RECORD_KEY_CONFIGS,
    RECORD_KEY_STATE,
    Key,
    Stage,
)
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.compat.common.recorddict_compat import fitres_to_recorddict
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.server import LegacyContext, SimpleClientManager
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from benchmarks.peers_tenseal import check_alphas

Vector = NDArray[np.float64]
THRESHOLD: Final = 5
_LENGTH: Final = struct.Struct("<I")


class FlowerPeer:
    """One cohort: the keys and shares that clients of a round exchange before they send.

    A client's two first stages run again on a copy in every call, so that their time and bytes
    count; the masks come from the cohort's own keys, else they would not cancel.
    """

    name: ClassVar[str] = "Flower SecAgg+"
    description: ClassVar[str] = (
        f"flwr {version('flwr')}: secaggplus_mod and SecAggPlusWorkflow with FedAvg, all are "
        f"neighbours, threshold {THRESHOLD}, clip 8, 2^22 steps, mod 2^32, max_weight 1000; "
        "no network and no SuperLink"
    )
    precision: ClassVar[float] = 0.05
    context_bytes: ClassVar[int] = 0

    def __init__(self, alphas: Sequence[int]) -> None:
        logging.getLogger("flwr").setLevel(logging.ERROR)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 0
        self._alphas = tuple(alphas)
        self._asked: dict[str, list[RecordDict]] = {}
        self._members: list[Context] = []
        self._rehearse()

    @property
    def _nodes(self) -> range:
        return range(1, 1 + len(self._alphas))

    def client(self, values: Vector, number: int = 0) -> bytes:
        """Keys, encrypted shares, the masked vector, and shares of all seeds: four replies."""
        node = self._nodes[number]
        rehearsal = _client_context(node)
        keys = self._answer(rehearsal, Stage.SETUP, number, values)
        offered = dict(_configs(self._asked[Stage.SHARE_KEYS][number]))
        own = _configs(keys)
        offered[str(node)] = [own[Key.PUBLIC_KEY_1], own[Key.PUBLIC_KEY_2]]
        shares = _reply(rehearsal, _record(offered), node)
        member = _copied(self._members[number])
        masked = self._answer(member, Stage.COLLECT_MASKED_VECTORS, number, values)
        seeds = self._answer(member, Stage.UNMASK, number, values)
        return b"".join(_framed(reply) for reply in (keys, shares, masked, seeds))

    def server(self, uploads: Sequence[bytes], alphas: Sequence[int]) -> bytes:
        """Flower's whole workflow for one round, the replies taken from the uploads."""
        check_alphas(alphas, self._alphas)
        replies = [iter(_unframed(upload)) for upload in uploads]

        def exchange(messages: Iterable[Message], **_: object) -> list[Message]:
            return [
                Message(next(replies[message.metadata.dst_node_id - 1]), reply_to=message)
                for message in messages
            ]

        mean = self._run(exchange).state.array_records[MAIN_PARAMS_RECORD]
        return bytes(recorddict_to_proto(RecordDict({"mean": mean})).SerializeToString())

    def open(self, total: bytes, size: int) -> Vector:
        """The mean, times Σα: SecAgg+ hands it to the server in clear."""
        record = recorddict_from_proto(RecordDictProto.FromString(total))
        (mean,) = record.array_records["mean"].to_numpy_ndarrays()
        return np.asarray(mean[:size], np.float64) * sum(self._alphas)

    def _run(self, exchange: Callable[..., list[Message]]) -> LegacyContext:
        """Flower's server workflow over all four stages, with `exchange` for a network."""
        context = _server_context(self._nodes)
        grid = SimpleNamespace(send_and_receive=exchange)
        SecAggPlusWorkflow(len(self._alphas), THRESHOLD)(grid, context)
        return context

    def _answer(self, context: Context, stage: str, number: int, values: Vector) -> RecordDict:
        """What the client replies in a stage; `values` count in the third only."""
        asked = _record(dict(_configs(self._asked[stage][number])))
        return _reply(context, asked, self._nodes[number], values, self._alphas[number])

    def _rehearse(self) -> None:
        """Play a round once; keep what each client was asked, and its state before it sends."""
        playing = [_client_context(node) for node in self._nodes]

        def exchange(messages: Iterable[Message], **_: object) -> list[Message]:
            ordered = sorted(messages, key=lambda message: int(message.metadata.dst_node_id))
            stage = str(_configs(ordered[0].content)[Key.STAGE])
            self._asked[stage] = [_record(dict(_configs(asked.content))) for asked in ordered]
            if stage == Stage.COLLECT_MASKED_VECTORS:
                self._members = [_copied(context) for context in playing]
            return [
                Message(self._answer(playing[place], stage, place, np.zeros(1)), reply_to=asked)
                for place, asked in enumerate(ordered)
            ]

        self._run(exchange)


def _reply(
    context: Context,
    content: RecordDict,
    node: int,
    values: Vector | None = None,
    alpha: int = 1,
) -> RecordDict:
    """One call of Flower's client mod around a client application that returns `values`."""

    def application(message: Message, _: Context) -> Message:
        parameters = ndarrays_to_parameters([values])
        result = FitRes(Status(Code.OK, ""), parameters, alpha, {})
        return Message(fitres_to_recorddict(result, keep_input=True), reply_to=message)

    asked = Message(content, dst_node_id=node, message_type="train", group_id="1")
    return secaggplus_mod(asked, context, application).content


def _client_context(node: int) -> Context:
    return Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})


def _copied(context: Context) -> Context:
    copy = _client_context(context.node_id)
    kept = context.state.config_records[RECORD_KEY_STATE]
    copy.state.config_records[RECORD_KEY_STATE] = ConfigRecord(dict(kept))
    return copy


def _server_context(nodes: Iterable[int]) -> LegacyContext:
    """A round of FedAvg over `nodes`, as Flower's ServerApp sets it up."""
    manager = SimpleClientManager()
    for node in nodes:
        manager.register(SimpleNamespace(cid=str(node), node_id=node))
    state = RecordDict()
    state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    initial = fitres_to_recorddict(
        FitRes(Status(Code.OK, ""), ndarrays_to_parameters([np.zeros(1)]), 1, {}), keep_input=True
    )
    (state.array_records[MAIN_PARAMS_RECORD],) = initial.array_records.values()
    plain = Context(run_id=1, node_id=0, node_config={}, state=state, run_config={})
    return LegacyContext(plain, strategy=FedAvg(), client_manager=manager)


def _record(configs: dict[str, Any]) -> RecordDict:
    return RecordDict({RECORD_KEY_CONFIGS: ConfigRecord(configs)})


def _configs(content: RecordDict) -> ConfigRecord:
    return content.config_records[RECORD_KEY_CONFIGS]


def _framed(content: RecordDict) -> bytes:
    body: bytes = recorddict_to_proto(content).SerializeToString()
    return _LENGTH.pack(len(body)) + body


def _unframed(upload: bytes) -> Iterator[RecordDict]:
    place = 0
    while place < len(upload):
        (length,) = _LENGTH.unpack_from(upload, place)
        place += _LENGTH.size + length
        yield recorddict_from_proto(RecordDictProto.FromString(upload[place - length : place]))
