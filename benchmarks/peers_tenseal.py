"""CKKS by TenSEAL with a public key, as in its tutorials and with PPPML-HMI's parameters.

In both, clients hold the secret key and the server a context without it. A fresh ciphertext's noise
is SEAL's rounding by the special prime, which meets the ternary secret: σ ≈ √(N/18) = 21 for a
coefficient at N = 8192 and √(N/2)·21 over the scale in a slot, with a long tail because the
secret's embedding differs between slots. The stated precisions allow 25 such σ for eight clients.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Self

import numpy as np
import tenseal as ts
from numpy.typing import NDArray

Vector = NDArray[np.float64]
_LIBC = ctypes.CDLL(None)


@contextmanager
def quiet() -> Iterator[None]:
    """Send file descriptor 1 nowhere: TenSEAL's C++ remarks on long vectors there."""
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        _LIBC.fflush(None)
        os.dup2(kept, 1)
        os.close(nowhere)
        os.close(kept)


@dataclass(frozen=True)
class TensealPeer:
    """Slots of a `ckks_vector`; the weights are applied where `server_weights` says."""

    name: str
    description: str
    precision: float
    alphas: tuple[int, ...]
    server_weights: bool
    holder: Any
    keyless: Any
    context_bytes: int = 0

    @classmethod
    def usual(cls, alphas: Sequence[int]) -> Self:
        """The tutorials' parameters; the server multiplies each ciphertext by its weight."""
        return cls._of(
            "TenSEAL",
            "ckks_vector, public key, 8192 [60,40,40,60], scale 2^40, α × ciphertext at the server",
            alphas,
            [60, 40, 40, 60],
            40,
            server_weights=True,
            precision=1e-3,
        )

    @classmethod
    def pppml_hmi(cls, alphas: Sequence[int]) -> Self:
        """Parameters of PPPML-HMI's TrainPPPML.py; a client encrypts its share α/Σα."""
        return cls._of(
            "PPPML-HMI parameters",
            "public key, 8192 [31,26,26,26,26,26,26,31], scale 2^26, α/Σα before encryption; "
            "its ring and masks are not run",
            alphas,
            [31, *[26] * 6, 31],
            26,
            server_weights=False,
            precision=0.05,
        )

    @classmethod
    def _of(
        cls,
        name: str,
        text: str,
        alphas: Sequence[int],
        chain: list[int],
        scale_bits: int,
        *,
        server_weights: bool,
        precision: float,
    ) -> Self:
        with quiet():
            holder = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=chain, n_threads=1)
            holder.global_scale = 2**scale_bits
            keyless = ts.context_from(holder.serialize(save_secret_key=False), n_threads=1)
        text = f"tenseal {version('tenseal')}: {text}"
        return cls(name, text, precision, tuple(alphas), server_weights, holder, keyless)

    def client(self, values: Vector, number: int = 0) -> bytes:
        """Encrypt and serialise one vector."""
        if not self.server_weights:
            values = values * (self.alphas[number] / sum(self.alphas))
        with quiet():
            body: bytes = ts.ckks_vector(self.holder, values).serialize()
        return body

    def server(self, uploads: Sequence[bytes], alphas: Sequence[int]) -> bytes:
        """Parse, weight where the server does, add, serialise."""
        check_alphas(alphas, self.alphas)
        total: Any = None
        with quiet():
            for upload, alpha in zip(uploads, alphas, strict=True):
                vector = ts.ckks_vector_from(self.keyless, upload)
                if self.server_weights:
                    vector *= alpha
                total = vector if total is None else total + vector
            body: bytes = total.serialize()
        return body

    def open(self, total: bytes, size: int) -> Vector:
        """Decrypt; undo the division by Σα where the clients divided."""
        with quiet():
            values = np.asarray(ts.ckks_vector_from(self.holder, total).decrypt(), np.float64)
        return values[:size] * (1 if self.server_weights else sum(self.alphas))


def check_alphas(given: Sequence[int], made_with: Sequence[int]) -> None:
    """ValueError unless the server is given the weights that the clients were."""
    if tuple(given) != tuple(made_with):
        raise ValueError(f"the peer was made for weights {tuple(made_with)}, not {tuple(given)}")
