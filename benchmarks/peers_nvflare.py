# mypy: disable-error-code="import-not-found,import-untyped"
"""NVFlare's homomorphic encryption: its own builder, filters, aggregator and serialiser.

Provisioning (`HEBuilder`) makes the contexts with its defaults; a client runs `HEModelEncryptor`
and FOBS; the server FOBS, `HEInTimeAccumulateWeightedAggregator` and `HEModelShareableGenerator`;
a receiver FOBS and `HEModelDecryptor`. Not run: the network, the job runner, and the signature on
the context files, which is a check at start-up.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import tenseal as ts
import torchvision
from numpy.typing import NDArray
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_opt.he.intime_accumulate_model_aggregator import (
    HEInTimeAccumulateWeightedAggregator,
)
from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
from nvflare.app_opt.he.model_shareable_generator import HEModelShareableGenerator
from nvflare.fuel.sec.security_content_service import SecurityContentManager, SecurityContentService
from nvflare.fuel.utils import fobs
from nvflare.lighter.impl.he import HEBuilder

from benchmarks.peers_tenseal import check_alphas, quiet

Vector = NDArray[np.float64]
SLOTS: Final = 4096
_VARIABLE: Final = "logits"


class NvflarePeer:
    """All NVFlare classes of one client, the server and a receiver, set up as at a run's start."""

    name: ClassVar[str] = "NVFlare HE"
    description: ClassVar[str] = (
        f"nvflare {version('nvflare')}, tenseal {version('tenseal')}: defaults of HEBuilder (8192 "
        "[60,40,40], scale 2^40, one symmetric key), HE filters, aggregator and FOBS as they are, "
        "which sends the context with each vector; no network, no signed start-up kit"
    )
    precision: ClassVar[float] = 1e-3

    def __init__(self, alphas: Sequence[int]) -> None:
        self._alphas = tuple(alphas)
        names = [_site(number) for number in range(len(alphas))]
        with quiet(), tempfile.TemporaryDirectory() as folder:
            _provision(Path(folder))
            self._round = _fl_context()
            self._encryptor, self._decryptor = HEModelEncryptor(), HEModelDecryptor()
            self._aggregator = HEInTimeAccumulateWeightedAggregator(
                aggregation_weights=dict.fromkeys(names, 1.0), expected_data_kind=DataKind.WEIGHTS
            )
            self._generator = HEModelShareableGenerator()
            for part in (self._encryptor, self._decryptor, self._aggregator, self._generator):
                part.handle_event(EventType.START_RUN, self._round)
            sample = ts.ckks_vector(self._encryptor.tenseal_context, [0.0])
            self.context_bytes = len(sample.context().serialize())

    def client(self, values: Vector, number: int = 0) -> bytes:
        """Weight by α, which goes along in clear as the number of local steps, and encrypt."""
        return self.encrypted({_VARIABLE: values}, self._alphas[number], _site(number))

    def encrypted(self, arrays: Mapping[str, NDArray[Any]], steps: int, site: str) -> bytes:
        """The message of one client: a ciphertext vector for each named array."""
        peer = FLContext()
        peer.set_prop(ReservedKey.IDENTITY_NAME, site, private=False, sticky=False)
        self._round.set_peer_context(peer)
        meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: steps}
        update = DXO(DataKind.WEIGHTS, data=dict(arrays), meta=meta)
        with quiet():
            body: bytes = fobs.dumps(self._encryptor.process(update.to_shareable(), self._round))
        return body

    def server(self, uploads: Sequence[bytes], alphas: Sequence[int]) -> bytes:
        """Accept each message, aggregate to the weighted mean, serialise as the global model."""
        check_alphas(alphas, self._alphas)
        with quiet():
            for number, upload in enumerate(uploads):
                message = fobs.loads(upload)
                message.set_peer_props({ReservedKey.IDENTITY_NAME: _site(number)})
                message.add_cookie(AppConstants.CONTRIBUTION_ROUND, 0)
                if not self._aggregator.accept(message, self._round):
                    raise ValueError(f"NVFlare's aggregator refused {_site(number)}")
            before = make_model_learnable({_VARIABLE: np.zeros(1)}, {})
            self._round.set_prop(AppConstants.GLOBAL_MODEL, before)
            mean = self._aggregator.aggregate(self._round)
            model = self._generator.shareable_to_learnable(mean, self._round)
            answer = self._generator.learnable_to_shareable(model, self._round)
            body: bytes = fobs.dumps(answer)
        return body

    def open(self, total: bytes, size: int) -> Vector:
        """Decrypt the mean, and multiply by Σα."""
        with quiet():
            message = self._decryptor.process(fobs.loads(total), self._round)
        mean = np.asarray(from_shareable(message).data[_VARIABLE], np.float64)
        return mean[:size] * sum(self._alphas)


@dataclass(frozen=True)
class ModelBytes:
    """What one client sends for a whole model, a ciphertext vector for each tensor.

    `measured_parameters` of all `parameters` were really encrypted, in `measured_seconds`; each
    other tensor counts ⌈n/4096⌉ ciphertexts of the mean measured size, and a context.
    """

    parameters: int
    tensors: int
    ciphertexts: int
    measured_parameters: int
    measured_seconds: float
    bytes_per_ciphertext: float
    context_bytes_per_tensor: int

    @property
    def ciphertext_bytes(self) -> int:
        """Ciphertexts alone."""
        return round(self.ciphertexts * self.bytes_per_ciphertext)

    @property
    def total_bytes(self) -> int:
        """With the context that NVFlare's serialiser adds to each tensor."""
        return self.ciphertext_bytes + self.tensors * self.context_bytes_per_tensor


def resnet18_bytes(peer: NvflarePeer, fraction: float = 1.0) -> ModelBytes:
    """Encrypt ResNet-18's 62 tensors one by one, up to `fraction` of its 11,689,512 parameters.

    The weights are torchvision's random ones: a ciphertext's size does not depend on them. All
    of it takes about ten seconds on one core and 600 MB; ValueError unless 0 < fraction ≤ 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError("the fraction to measure is above 0 and at most 1")
    arrays = {
        name: parameter.detach().numpy()
        for name, parameter in torchvision.models.resnet18(weights=None).named_parameters()
    }
    parameters = sum(array.size for array in arrays.values())
    measured = ciphertexts = sent = 0
    start = time.perf_counter()
    for name, array in arrays.items():
        if measured >= fraction * parameters:
            break
        sent += len(peer.encrypted({name: array}, 1, _site(0))) - peer.context_bytes
        measured += array.size
        ciphertexts += -(-array.size // SLOTS)
    return ModelBytes(
        parameters=parameters,
        tensors=len(arrays),
        ciphertexts=sum(-(-array.size // SLOTS) for array in arrays.values()),
        measured_parameters=measured,
        measured_seconds=time.perf_counter() - start,
        bytes_per_ciphertext=sent / ciphertexts,
        context_bytes_per_tensor=peer.context_bytes,
    )


def _provision(folder: Path) -> None:
    """Put the contexts of server and client where a start-up kit has them."""
    builder = HEBuilder()
    builder.initialize(None, None)
    (folder / "server_context.tenseal").write_bytes(builder.get_serialized_context())
    (folder / "client_context.tenseal").write_bytes(builder.get_serialized_context(is_client=True))
    SecurityContentService.security_content_manager = SecurityContentManager(str(folder))


def _fl_context() -> Any:
    context = FLContext()
    context.set_prop(FLContextKey.SECURE_MODE, False, private=True, sticky=False)
    context.set_prop(FLContextKey.CURRENT_JOB_ID, "benchmark")
    context.set_prop(AppConstants.CURRENT_ROUND, 0)
    return context


def _site(number: int) -> str:
    return f"site-{number}"
