"""CKKS through TenSEAL's SEAL: keys, encryption and opening of exact integer sums.

With `protocols.tenseal_slots`, which borrows its loader, the only importer of tenseal. Both use
`tenseal.sealapi` alone: no TenSEAL vector, no context with a thread pool. Every SEAL object is
built from residues that were checked to be below their modulus; bytes from elsewhere never reach
a parser of SEAL or TenSEAL.

Integers are polynomial coefficients: SEAL encrypts zero, and Δ·m is added to the coefficients
of c₀ modulo q in exact arithmetic, so encoding has no error at all.
"""

import os
import struct
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import numpy as np
import tenseal.sealapi as seal

from protocols.errors import ProtocolError
from protocols.mechanisms import Released
from protocols.messages import IntVector
from protocols.presets import check_width
from protocols.residues import Residues, pack, unpack
from protocols.rlwe import Preset

T = TypeVar("T", seal.Ciphertext, seal.PublicKey, seal.RelinKeys)
_BLOB: Final = struct.Struct("<HBBBBHQ")  # magic, header bytes, version 4.3, compression, total
_CIPHERTEXT: Final = struct.Struct("<4QBQQQdQ")  # parms_id, NTT form, size, N, primes, scale, –


class PublicKey:
    """A decryptor's public key for one attempt, built from its residues at the client."""

    def __init__(self, preset: Preset, body: bytes) -> None:
        if len(body) != preset.public_key_bytes:
            raise ProtocolError("public key has another length", where="round key")
        moduli = (preset.prime, preset.special) * 2
        residues = unpack(body, preset.special.bit_length(), moduli)
        context = _context(preset.name, preset.degree, (preset.prime, preset.special))
        blob = _ciphertext_blob(context.key_parms_id(), residues.reshape(2, 2, -1), ntt=True)
        key = _load(seal.PublicKey(), context, blob)
        self.preset = preset
        self._encryptor = seal.Encryptor(context, key)
        self._evaluator = seal.Evaluator(context)

    def zeros(self) -> Residues:
        """A fresh encryption of zero, residues [2, N] in coefficient form.

        SEAL draws its randomness from the operating system, seeded anew for every call.
        """
        ciphertext = seal.Ciphertext()
        self._encryptor.encrypt_zero(ciphertext)
        self._evaluator.transform_from_ntt_inplace(ciphertext)
        return _words(ciphertext, 2 * self.preset.degree).reshape(2, -1)


class RoundSecret:
    """The decryptor's secret of one attempt. It lives in that process and is never serialised.

    SEAL clears the key's memory when the object goes; no stronger wiping is promised.
    """

    def __init__(self, preset: Preset) -> None:
        self._preset = preset
        self._context = _context(preset.name, preset.degree, (preset.prime, preset.special))
        generator = seal.KeyGenerator(self._context)
        public = seal.PublicKey()
        generator.create_public_key(public)
        self.public_body = pack(
            _words(public.data(), 4 * preset.degree), preset.special.bit_length()
        )
        self._decryptor = seal.Decryptor(self._context, generator.secret_key())
        self._evaluator = seal.Evaluator(self._context)

    def open_sum(self, body: bytes, size: int, total: int) -> IntVector:
        """Σα·x, int64[size], of a weighted sum with Σα = `total`.

        The decryptor runs it once per group, after it has recomputed `body` from the signed
        contributions. Raises ProtocolError, without figures, if an error or a value is beyond
        its proved bound or the unused coefficients are not zero.
        """
        blocks = unpack(body, self._preset.residue_bits, (self._preset.prime,))
        try:
            pairs = blocks.reshape(-1, 2, self._degree)
            phases = np.concatenate([self._phase(pair) for pair in pairs])
        except (RuntimeError, ValueError):  # SEAL refuses some, such as c₁ = 0, in its own words
            raise ProtocolError("sum is not a ciphertext", where="opening") from None
        scale = self._preset.scale
        values = (phases + scale // 2) // scale
        errors = np.abs(phases - values * scale)
        inside = errors.max() < self._preset.noise_bound * total
        bounded = np.abs(values).max() <= self._preset.value_limit * total
        if not (inside and bounded) or values[size:].any():
            raise ProtocolError("sum is not one of honest contributions", where="opening")
        return values[:size]

    def __reduce__(self) -> str:
        raise ProtocolError("a round's secret key may not be pickled", where="decryptor")

    @property
    def _degree(self) -> int:
        return self._preset.degree

    def _phase(self, pair: Residues) -> IntVector:
        """c₀ + c₁·s, centred, in coefficient form."""
        parms = self._context.first_parms_id()
        blob = _ciphertext_blob(parms, pair[:, None], ntt=False)
        ciphertext, plaintext = _load(seal.Ciphertext(), self._context, blob), seal.Plaintext()
        self._evaluator.transform_to_ntt_inplace(ciphertext)
        self._decryptor.decrypt(ciphertext, plaintext)
        # sealapi transforms ciphertexts back, not plaintexts: carry the phase as both polynomials.
        phase = np.tile(_words(plaintext, self._degree), (2, 1))
        blob = _ciphertext_blob(parms, phase[:, None], ntt=True)
        carrier = _load(seal.Ciphertext(), self._context, blob)
        self._evaluator.transform_from_ntt_inplace(carrier)
        words = _words(carrier, self._degree).astype(np.int64)
        return words - self._preset.prime * (words > self._preset.prime // 2)


def encrypt(public_key: PublicKey, released: Released, span: tuple[int, int]) -> bytes:
    """Encrypt released integers `span` = [start, stop) into a contribution's body; a client's step.

    `released` comes from a mechanism and nothing else is taken: TypeError. PrivacyError if an
    integer is beyond the preset's limit, so that a sum could wrap.
    """
    if type(released) is not Released:
        raise TypeError("encrypt takes a Released, which only a mechanism's release() makes")
    preset, values = public_key.preset, released.values[slice(*span)]
    check_width(values, preset)
    padded = np.zeros((preset.blocks(len(values)), preset.degree), np.int64)
    padded.flat[: len(values)] = values
    scaled = (padded * preset.scale % preset.prime).astype(np.uint64)
    ciphertexts = np.stack([public_key.zeros() for _ in padded])
    ciphertexts[:, 0] = (ciphertexts[:, 0] + scaled) % np.uint64(preset.prime)
    return pack(ciphertexts, preset.residue_bits)


def _context(name: str, degree: int, primes: Sequence[int]) -> seal.SEALContext:
    """SEAL's context of the primes, the special one last, if they are those that SEAL picks."""
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(degree)
    moduli = seal.CoeffModulus.Create(degree, [prime.bit_length() for prime in primes])
    if [modulus.value() for modulus in moduli] != list(primes):
        raise ProtocolError(
            "this build of SEAL has other primes",
            where=f"preset {name}",
            fix="install the pinned tenseal",
        )
    parameters.set_coeff_modulus(moduli)
    return seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)


def _words(source: seal.Ciphertext | seal.Plaintext, count: int) -> Residues:
    item: Callable[[int], int] = source.__getitem__
    return np.fromiter(map(item, range(count)), np.uint64, count)


def _blob(body: bytes) -> bytes:
    return _BLOB.pack(0xA15E, _BLOB.size, 4, 3, 0, 0, _BLOB.size + len(body)) + body


def _ciphertext_blob(parms: list[int], residues: Residues, *, ntt: bool) -> bytes:
    """SEAL's uncompressed ciphertext of residues [2, primes, N]."""
    _, primes, degree = residues.shape
    head = _CIPHERTEXT.pack(*parms, ntt, 2, degree, primes, 1.0, 1)
    words = np.ascontiguousarray(residues, dtype="<u8").tobytes()
    return _blob(head + _blob(struct.pack("<Q", residues.size) + words))


def _load(target: T, context: seal.SEALContext, blob: bytes) -> T:
    """Load a blob made above; SEAL reads from a path only, so from an anonymous file."""
    descriptor = os.memfd_create("seal", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(blob)
        target.load(context, f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return target
