"""CKKS as federated learning commonly uses it: real numbers in slots, one key for all clients.

For studies, and as the positive control of attacks; no plan can ask for it. The parameters are
those of NVFlare's provisioning (60, 40, 40 bits at degree 8192, scale 2^40) and, where weights are
encrypted too, of TenSEAL's tutorials (60, 40, 40, 60). Every client has the secret key; the server
has none. What it leaks: whoever holds a sum and the floats read from it finds the key (Li and
Micciancio, EUROCRYPT 2021; `attacks.cryptanalysis`), and one client's key opens every upload.

An integer of b bits sits in a slot as the real number x/2^(b−1), hence below 1, so the scale of
the integer itself is Δ/2^(b−1). Weights are encoded at a scale equal to the prime that rescaling
divides by. The scale is then Δ/2^(b−1) again, exactly, where libraries that reset it to a power
of two bias every sum by p/2^40. One multiplication is all the depth there is.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import tenseal.sealapi as seal
from numpy.typing import ArrayLike, NDArray

from protocols.errors import PrivacyError, ProtocolError
from protocols.residues import Residues
from protocols.slots import LARGEST_TOTAL, SlotsPreset
from protocols.tenseal_ckks import _blob, _ciphertext_blob, _context, _load, _words

Floats = NDArray[np.float64]
Weight = int | Floats | bytes


class SlotsSecret:
    """The secret key that all clients share. It makes uploads and reads sums."""

    def __init__(self, preset: SlotsPreset) -> None:
        self.preset = preset
        self._context = _context(preset.name, preset.degree, preset.primes)
        self._generator = seal.KeyGenerator(self._context)
        self._encoder = seal.CKKSEncoder(self._context)
        self._evaluator = seal.Evaluator(self._context)
        self._key = self._generator.secret_key()
        self._encryptor = seal.Encryptor(self._context, self._key)
        self._decryptor = seal.Decryptor(self._context, self._key)

    def encrypt(self, values: ArrayLike) -> bytes:
        """The upload of numbers [size], integers or not, within ±`preset.value_limit`.

        PrivacyError for anything larger, infinite or not a number: a sum of it could wrap.
        """
        return self._upload(values, self.preset.value_limit, self.preset.slot_scale)

    def encrypt_weights(self, weights: ArrayLike) -> bytes:
        """The upload of one client's own weights [size], one per slot, within ±LARGEST_TOTAL."""
        return self._upload(weights, LARGEST_TOTAL, float(self.preset.upload_primes[-1]))

    def relin_key(self) -> bytes:
        """A fresh relinearisation key for the server, which multiplies ciphertexts with it.

        It holds encryptions of parts of s², in the NTT form in which SEAL keeps them.
        """
        keys = seal.RelinKeys()
        self._generator.create_relin_keys(keys)
        count = 2 * len(self.preset.primes) * self.preset.degree
        words = np.stack([_words(key.data(), count) for key in keys.data()[0]])
        return self.preset.pack(words.reshape(len(words), 2, -1, self.preset.degree))

    def read_sum(self, body: bytes, size: int) -> Floats:
        """float64[size] of a weighted sum: the right numbers plus errors that depend on the key.

        These errors are the leak. A sum of another key gives numbers without meaning, and nothing
        tells. ProtocolError if the length is wrong, a residue not reduced, or c₁ zero.
        """
        blocks = self.preset.unpack(body, self.preset.blocks(size), self.preset.sum_primes)
        with _refusing():
            return np.concatenate([self._read(pair) for pair in blocks])[:size]

    def coefficients(self) -> NDArray[np.int8]:
        """The N ternary coefficients of the key: the truth a study scores an attack against."""
        words = _words(self._key.data(), self.preset.degree)
        # sealapi transforms ciphertexts back, not keys: carry the key as both polynomials.
        pair = np.tile(words, (2, 1))[:, None]
        blob = _ciphertext_blob(self._context.last_parms_id(), pair, ntt=True)
        carrier = _load(seal.Ciphertext(), self._context, blob)
        self._evaluator.transform_from_ntt_inplace(carrier)
        words, prime = _words(carrier, self.preset.degree), self.preset.primes[0]
        return np.where(words > prime // 2, -1, words != 0).astype(np.int8)

    def _upload(self, values: ArrayLike, limit: int, scale: float) -> bytes:
        numbers = np.asarray(values, np.float64)
        if not (np.abs(numbers) <= limit).all():
            raise PrivacyError(
                "a number does not fit its slot",
                where=f"preset {self.preset.name}",
                why=f"the limit is ±{limit}",
            )
        padded = np.zeros((self.preset.blocks(numbers.size), self.preset.slots))
        padded.flat[: numbers.size] = numbers
        return self.preset.pack(np.stack([self._encrypt(row, scale) for row in padded]))

    def _encrypt(self, row: Floats, scale: float) -> Residues:
        plaintext, ciphertext = seal.Plaintext(), seal.Ciphertext()
        self._encoder.encode(row.tolist(), scale, plaintext)
        self._encryptor.encrypt_symmetric(plaintext, ciphertext)
        return _coefficients(ciphertext, self._evaluator, self.preset, self.preset.upload_primes)

    def _read(self, pair: Residues) -> Floats:
        blob = _ciphertext_blob(self._context.last_parms_id(), pair, ntt=False)
        ciphertext, plaintext = _load(seal.Ciphertext(), self._context, blob), seal.Plaintext()
        self._evaluator.transform_to_ntt_inplace(ciphertext)
        ciphertext.scale = self.preset.slot_scale
        self._decryptor.decrypt(ciphertext, plaintext)
        return np.array(self._encoder.decode_double(plaintext))


class SlotsSum:
    """Σw·c over uploads, as a server without any key computes it.

    `relin_key` is needed for encrypted weights only. All weights of one sum are of one kind.
    """

    def __init__(self, preset: SlotsPreset, size: int, relin_key: bytes | None = None) -> None:
        self._preset, self._size = preset, size
        self._context = _context(preset.name, preset.degree, preset.primes)
        self._encoder = seal.CKKSEncoder(self._context)
        self._evaluator = seal.Evaluator(self._context)
        self._relin = None if relin_key is None else self._relin_keys(relin_key)
        self._sums: list[seal.Ciphertext] = []
        self._total: Floats = np.zeros(size)

    def add(self, body: bytes, weight: Weight) -> None:
        """Add one upload times its weight.

        `weight` is one integer for the client, or float64[size] with a weight per slot, neither
        negative and adding up to at most LARGEST_TOTAL; or the bytes of `encrypt_weights`, which
        the server cannot check. A block of zero weights alone has no ciphertext: ProtocolError,
        as for bodies of another length or with residues that are not reduced.
        """
        clear = 0 if isinstance(weight, bytes) else weight
        if np.shape(clear) not in ((), (self._size,)):
            raise ProtocolError("weights are neither one nor one per slot", where="sum")
        total = self._total + clear
        if np.min(clear) < 0 or not total.max() <= LARGEST_TOTAL:
            raise ProtocolError("weights are negative or add up to too much", where="sum")
        with _refusing():
            products = self._ciphertexts(body)
            for product, factor in zip(products, self._factors(weight), strict=True):
                if isinstance(factor, seal.Plaintext):
                    self._evaluator.multiply_plain_inplace(product, factor)
                else:
                    self._evaluator.multiply_inplace(product, factor)
            for sofar, product in zip(self._sums, products, strict=False):
                self._evaluator.add_inplace(product, sofar)
        self._sums, self._total = products, total

    def body(self) -> bytes:
        """The sum so far, relinearised, rescaled and switched to the first prime."""
        if not self._sums:
            raise ProtocolError("nothing was added", where="sum")
        with _refusing():
            return self._preset.pack(np.stack([self._finished(one) for one in self._sums]))

    def _factors(self, weight: Weight) -> Sequence[seal.Ciphertext | seal.Plaintext]:
        """One factor per block, at the scale that rescaling takes away again."""
        if isinstance(weight, bytes):
            if self._relin is None:
                raise ProtocolError("encrypted weights need a relinearisation key", where="sum")
            return self._ciphertexts(weight)
        if isinstance(weight, int):
            return [self._plaintext(float(weight))] * self._preset.blocks(self._size)
        starts = range(0, self._size, self._preset.slots)
        return [self._plaintext(weight[at : at + self._preset.slots].tolist()) for at in starts]

    def _plaintext(self, weights: float | list[float]) -> seal.Plaintext:
        plaintext = seal.Plaintext()
        self._encoder.encode(weights, float(self._preset.upload_primes[-1]), plaintext)
        return plaintext

    def _ciphertexts(self, body: bytes) -> list[seal.Ciphertext]:
        blocks, parms = self._preset.blocks(self._size), self._context.first_parms_id()
        ciphertexts = []
        for pair in self._preset.unpack(body, blocks, self._preset.upload_primes):
            blob = _ciphertext_blob(parms, pair, ntt=False)
            ciphertexts.append(_load(seal.Ciphertext(), self._context, blob))
            self._evaluator.transform_to_ntt_inplace(ciphertexts[-1])
        return ciphertexts

    def _finished(self, total: seal.Ciphertext) -> Residues:
        linear, lower = total, seal.Ciphertext()
        if total.size() > 2:
            linear = seal.Ciphertext()
            self._evaluator.relinearize(total, self._relin, linear)
        self._evaluator.rescale_to_next(linear, lower)
        self._evaluator.mod_switch_to_inplace(lower, self._context.last_parms_id())
        return _coefficients(lower, self._evaluator, self._preset, self._preset.sum_primes)

    def _relin_keys(self, body: bytes) -> seal.RelinKeys:
        keys = self._preset.unpack(body, len(self._preset.upload_primes), self._preset.primes)
        parms = self._context.key_parms_id()
        blobs = [_ciphertext_blob(parms, key, ntt=True) for key in keys]
        blob = _blob(struct.pack("<6Q", *parms, 1, len(blobs)) + b"".join(blobs))
        return _load(seal.RelinKeys(), self._context, blob)


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn whatever SEAL says of a ciphertext, such as of c₁ = 0, into one refusal."""
    try:
        yield
    except (RuntimeError, ValueError):
        raise ProtocolError("not a ciphertext of this preset", where="slots") from None


def _coefficients(
    ciphertext: seal.Ciphertext,
    evaluator: seal.Evaluator,
    preset: SlotsPreset,
    primes: tuple[int, ...],
) -> Residues:
    """Residues [2, primes, N] of a ciphertext, which is left in coefficient form."""
    evaluator.transform_from_ntt_inplace(ciphertext)
    words = _words(ciphertext, 2 * len(primes) * preset.degree)
    return words.reshape(2, len(primes), preset.degree)
