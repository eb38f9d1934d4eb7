"""Other systems' secure sums on one workload, each by its real package, to be timed beside ours.

The workload: eight clients, each 30,000 real numbers (2,000 proxies × 14 classes and one
denominator a proxy), integer weights α with Σα ≤ 32; wanted is Σ α·values. `peers(alphas)` makes
those that can be imported, and says of the others why not. Nothing here writes to standard
output: TenSEAL's own notes are swallowed.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.metadata import version
from typing import ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers_tenseal import TensealPeer

CLIENTS: Final = 8
SIZE: Final = 2000 * (14 + 1)
LARGEST_VALUE: Final = 8.0
"""Magnitude of the workload's numbers: Flower clips there by default, the others do not clip."""
LARGEST_TOTAL: Final = 32

Vector = NDArray[np.float64]


class Peer(Protocol):
    """One system that adds the clients' vectors, weighted. Each call is timed by the harness.

    `precision` bounds |open(...) − Σ α·values| for values within LARGEST_VALUE and Σα within
    LARGEST_TOTAL. `context_bytes` is the part of an upload that is the sender's public parameters
    and keys: a system that sent them once a session would save it. A peer that weights at the
    client, or needs to know its neighbours, gets the weights when it is made.
    """

    @property
    def name(self) -> str:
        """Short, for a table's row."""
        ...

    @property
    def description(self) -> str:
        """One line: package, version, parameters, and what is not driven as in production."""
        ...

    @property
    def precision(self) -> float:
        """Largest expected error of one number of the weighted sum."""
        ...

    @property
    def context_bytes(self) -> int:
        """Bytes of one upload that do not depend on the values; 0 where none."""
        ...

    def client(self, values: Vector, number: int = 0) -> bytes:
        """All that client `number` computes and sends in one round for `values` [size]."""
        ...

    def server(self, uploads: Sequence[bytes], alphas: Sequence[int]) -> bytes:
        """Parse the uploads of clients 0, 1, …, weight, add, serialise."""
        ...

    def open(self, total: bytes, size: int) -> Vector:
        """Σ α·values [size], as a receiver of the server's bytes computes it."""
        ...


class PlainFp32:
    """No protection: single-precision numbers, weighted and added by the server."""

    name: ClassVar[str] = "plain fp32"
    description: ClassVar[str] = f"numpy {version('numpy')}, little-endian float32 both ways"
    precision: ClassVar[float] = 1e-3
    context_bytes: ClassVar[int] = 0

    def client(self, values: Vector, number: int = 0) -> bytes:  # noqa: ARG002
        """The values, rounded."""
        return values.astype("<f4").tobytes()

    def server(self, uploads: Sequence[bytes], alphas: Sequence[int]) -> bytes:
        """Their weighted sum, rounded."""
        total = np.zeros(len(uploads[0]) // 4, np.float32)
        for upload, alpha in zip(uploads, alphas, strict=True):
            total += np.float32(alpha) * np.frombuffer(upload, "<f4")
        return total.astype("<f4").tobytes()

    def open(self, total: bytes, size: int) -> Vector:
        """The sum as it came."""
        return np.frombuffer(total, "<f4", size).astype(np.float64)


def peers(alphas: Sequence[int]) -> tuple[list[Peer], dict[str, str]]:
    """The peers that run here, for one client a weight; and {package: why it does not run}.

    ValueError for a weight below 1: TenSEAL's product with zero is no ciphertext.
    """
    if min(alphas) < 1:
        raise ValueError("weights start at 1; leave a client with weight 0 out")
    found: list[Peer] = [PlainFp32()]
    missing: dict[str, str] = {}
    try:
        from benchmarks.peers_nvflare import NvflarePeer

        found.append(NvflarePeer(alphas))
    except ImportError as error:
        missing["nvflare"] = str(error)
    found += [TensealPeer.usual(alphas), TensealPeer.pppml_hmi(alphas)]
    try:
        from benchmarks.peers_flower import FlowerPeer

        found.append(FlowerPeer(alphas))
    except ImportError as error:
        missing["flwr"] = str(error)
    missing["openfhe"] = why_no_openfhe()
    return found, missing


def why_no_openfhe() -> str:
    """Why OpenFHE is not among the peers, from an attempt to import it."""
    try:
        importlib.import_module("openfhe")
    except ImportError as error:
        return f"{type(error).__name__}: {error}"
    return "it imports, but has no driver here"


def workload(seed: int) -> list[Vector]:
    """Each client's numbers, [SIZE] each: like logits, within ±LARGEST_VALUE. For timing only."""
    generator = np.random.default_rng(seed)
    drawn = generator.normal(scale=2.0, size=(CLIENTS, SIZE))
    return list(np.clip(drawn, -LARGEST_VALUE, LARGEST_VALUE))
