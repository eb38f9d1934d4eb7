import numpy as np
import pytest

from protocols.errors import PrivacyError, ProtocolError
from protocols.slots import LARGEST_TOTAL, SLOTS18_140, SLOTS18_200, SlotsPreset
from protocols.tenseal_slots import SlotsSecret, SlotsSum

SIZE = 2 * 4096 + 100
LIMIT = SLOTS18_140.value_limit
KINDS = ("scalar", "slot", "ciphertext")


@pytest.fixture(scope="module")
def secrets():
    return {preset: SlotsSecret(preset) for preset in (SLOTS18_140, SLOTS18_200)}


@pytest.fixture(scope="module")
def secret(secrets):
    return secrets[SLOTS18_140]


def preset_of(kind):
    return SLOTS18_200 if kind == "ciphertext" else SLOTS18_140


def weighted(secret, kind, uploads, weights, size):
    """The body of Σw·c; each weight is a number, or an array with one per slot."""
    total = SlotsSum(secret.preset, size, secret.relin_key() if kind == "ciphertext" else None)
    for upload, weight in zip(uploads, weights, strict=True):
        each = np.broadcast_to(np.asarray(weight, float), size)
        forms = {"scalar": weight, "slot": each, "ciphertext": None}
        total.add(upload, forms[kind] if kind in KINDS[:2] else secret.encrypt_weights(each))
    return total.body()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alphas", [[1, 2, 3, 26], [32], [1] * 8])
def test_sums_of_integers_are_right_after_rounding_and_not_before(secrets, kind, alphas):
    """Four kinds of vectors × three sets of weights × three weightings, 8,292 integers each."""
    secret, draw = secrets[preset_of(kind)], np.random.default_rng(len(alphas))
    vectors = [draw.integers(-LIMIT, LIMIT + 1, SIZE) for _ in alphas]
    vectors[-1][:4096] = LIMIT
    vectors[0][4096:8192] = draw.choice([-LIMIT, LIMIT], 4096)
    body = weighted(secret, kind, [secret.encrypt(one) for one in vectors], alphas, SIZE)
    read = secret.read_sum(body, SIZE)
    expected = sum(a * v for a, v in zip(alphas, vectors, strict=True))
    assert (np.rint(read) == expected).all()
    # The leak: what is read is not the integers.
    assert (read != expected).mean() > 0.99


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_total_of_extreme_values_is_right(secrets, kind, sign):
    """A scale off by p/2^40 would already be wrong here, before any error of encryption."""
    secret = secrets[preset_of(kind)]
    bias = abs(secret.preset.upload_primes[-1] / 2**40 - 1)
    assert bias * LARGEST_TOTAL * LIMIT > 0.5
    upload = secret.encrypt(np.full(5000, sign * LIMIT))
    body = weighted(secret, kind, [upload] * 4, [8] * 4, 5000)
    assert (np.rint(secret.read_sum(body, 5000)) == sign * LARGEST_TOTAL * LIMIT).all()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_slot_may_have_a_weight_of_its_own(secrets, kind):
    """Weights that are eighths: eight times the sum is an integer."""
    secret, draw = secrets[preset_of(kind)], np.random.default_rng(3)
    vectors = [draw.integers(-LIMIT, LIMIT + 1, 5000) for _ in range(3)]
    weights = [draw.integers(0, 80, 5000) / 8 for _ in range(3)]
    body = weighted(secret, kind, [secret.encrypt(one) for one in vectors], weights, 5000)
    expected = sum(w * v for w, v in zip(weights, vectors, strict=True))
    assert (np.rint(8 * secret.read_sum(body, 5000)) == 8 * expected).all()


def test_another_key_reads_garbage_and_nothing_tells(secret):
    values = np.arange(4096)
    body = weighted(secret, "scalar", [secret.encrypt(values)], [1], 4096)
    read = SlotsSecret(SLOTS18_140).read_sum(body, 4096)
    assert np.isfinite(read).all()
    assert not (np.rint(read) == values).any()
    assert np.median(np.abs(read)) > LARGEST_TOTAL * LIMIT


def test_bodies_have_the_lengths_that_are_stated(secrets):
    for preset, upload in ((SLOTS18_140, 204_800), (SLOTS18_200, 286_720)):
        secret = secrets[preset]
        for size, blocks in ((1, 1), (4096, 1), (4097, 2)):
            sent = secret.encrypt(np.ones(size))
            body = weighted(secret, "scalar", [sent], [1], size)
            assert len(sent) == preset.upload_bytes(size) == blocks * upload
            assert len(body) == preset.sum_bytes(size) == blocks * 122_880
    assert len(secrets[SLOTS18_200].relin_key()) == SLOTS18_200.relin_bytes == 1_228_800


def test_residues_pack_and_unpack():
    draw = np.random.default_rng(4)
    for primes in (SLOTS18_200.upload_primes, SLOTS18_200.sum_primes, SLOTS18_200.primes):
        parts = [draw.integers(0, prime, (3, 2, 8192), np.uint64) for prime in primes]
        residues = np.stack(parts, axis=2)
        residues[0, 0, :, 0] = np.array(primes) - 1
        body = SLOTS18_200.pack(residues)
        assert (SLOTS18_200.unpack(body, 3, primes) == residues).all()


def other_lengths(body):
    return b"", body[:-1], body + b"\0", body * 2


def test_bodies_of_other_lengths_and_unreduced_residues_are_refused(secrets):
    secret = secrets[SLOTS18_200]
    upload, relin = secret.encrypt(np.ones(9)), secret.relin_key()
    total = SlotsSum(SLOTS18_200, 9, relin)
    for wrong in (*other_lengths(upload), b"\xff" * len(upload)):
        with pytest.raises(ProtocolError):
            total.add(wrong, 1)
        with pytest.raises(ProtocolError):
            total.add(upload, wrong)
    with pytest.raises(ProtocolError, match="nothing"):
        total.body()
    for wrong in (*other_lengths(relin), b"\xff" * len(relin)):
        with pytest.raises(ProtocolError):
            SlotsSum(SLOTS18_200, 9, wrong)
    total.add(upload, 1)
    body = total.body()
    for wrong in (*other_lengths(body), b"\xff" * len(body), bytes(len(body)), upload):
        with pytest.raises(ProtocolError):
            secret.read_sum(wrong, 9)


@pytest.mark.parametrize(
    "weight", [-1, 33, np.full(9, np.nan), np.full(9, -0.5), np.full(9, 33.0), np.zeros(9), 0]
)
def test_weights_out_of_range_and_blocks_of_zeros_are_refused(secret, weight):
    total = SlotsSum(SLOTS18_140, 9)
    with pytest.raises(ProtocolError):
        total.add(secret.encrypt(np.ones(9)), weight)


def test_a_refused_upload_leaves_the_sum_as_it_was(secret):
    total, upload = SlotsSum(SLOTS18_140, 9), secret.encrypt(np.arange(9))
    total.add(upload, 2)
    before = total.body()
    attempts = (upload, 31), (upload[:-1], 1), (upload, np.ones(8)), (upload, upload), (upload, 0)
    for body, weight in attempts:
        with pytest.raises(ProtocolError):
            total.add(body, weight)
    assert total.body() == before
    total.add(upload, 30)
    assert (np.rint(secret.read_sum(total.body(), 9)) == 32 * np.arange(9)).all()


@pytest.mark.parametrize("value", [LIMIT + 1, -LIMIT - 1, np.nan, np.inf])
def test_numbers_that_do_not_fit_are_not_encrypted(secret, value):
    with pytest.raises(PrivacyError, match="limit"):
        secret.encrypt([0, value])
    with pytest.raises(PrivacyError, match="limit"):
        secret.encrypt_weights([0, value])


def test_equal_numbers_encrypt_to_different_bytes_and_keys_differ(secret):
    assert len({secret.encrypt([1, 2]) for _ in range(5)}) == 5
    keys = {SlotsSecret(SLOTS18_140).coefficients().tobytes() for _ in range(3)}
    assert len(keys) == 3
    assert set(np.frombuffer(keys.pop(), np.int8)) == {-1, 0, 1}


def test_a_preset_with_primes_that_seal_does_not_choose_is_refused():
    swapped = SlotsPreset("x", 8192, SLOTS18_140.primes[::-1], 1 << 40, 18)
    with pytest.raises(ProtocolError, match="other primes"):
        SlotsSecret(swapped)
