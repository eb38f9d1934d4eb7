import pickle
import subprocess
import sys

import numpy as np
import pytest

from protocols.errors import ConfigError, PrivacyError, ProtocolError
from protocols.residues import WeightedSum, pack, unpack, weighted_sum
from protocols.rlwe import PK18_44, PRESETS, Preset, preset
from protocols.tenseal_ckks import PublicKey, RoundSecret
from protocols.tenseal_ckks import encrypt as encrypt_span

LIMIT, PRIME, DEGREE = PK18_44.value_limit, PK18_44.prime, PK18_44.degree


@pytest.fixture(scope="module")
def secret():
    return RoundSecret(PK18_44)


@pytest.fixture(scope="module")
def public(secret):
    return PublicKey(PK18_44, secret.public_body)


def encrypt(public, made):
    """All of a release, where the span is not what is tested."""
    size = len(made.values) if hasattr(made, "values") else 1
    return encrypt_span(public, made, (0, size))


def random_weights(draw):
    count = int(draw.integers(3, 7))
    return [int(alpha) for alpha in draw.integers(1, 127 // count + 1, count)]


def random_values(draw, size):
    kind = draw.integers(0, 4)
    if kind == 0:
        return draw.choice([-LIMIT, LIMIT], size)
    if kind == 1:
        return np.full(size, LIMIT * draw.choice([-1, 1]))
    if kind == 2:
        return draw.integers(-3, 4, size)
    return draw.integers(-LIMIT, LIMIT + 1, size)


def test_three_hundred_random_rounds_are_exact(make_released):
    draw = np.random.default_rng(0)
    for number in range(300):
        if number % 30 == 0:
            secret = RoundSecret(PK18_44)
            public = PublicKey(PK18_44, secret.public_body)
        alphas, size = random_weights(draw), int(draw.integers(1, DEGREE + 1))
        vectors = [random_values(draw, size) for _ in alphas]
        bodies = [encrypt(public, make_released(vector)) for vector in vectors]
        opened = secret.open_sum(weighted_sum(PK18_44, size, bodies, alphas), size, sum(alphas))
        expected = sum(a * v for a, v in zip(alphas, vectors, strict=True))
        assert (opened == expected).all(), f"round {number}"


@pytest.mark.parametrize("value", [LIMIT, -LIMIT])
@pytest.mark.parametrize("alphas", [[1, 1, 125], [43, 42, 42], [1] * 127])
def test_the_largest_weights_of_extreme_values_are_exact(
    secret, public, make_released, value, alphas
):
    assert sum(alphas) == PK18_44.largest_total
    body = encrypt(public, make_released(np.full(DEGREE + 5, value)))
    total = weighted_sum(PK18_44, DEGREE + 5, [body] * len(alphas), alphas)
    assert (secret.open_sum(total, DEGREE + 5, 127) == 127 * value).all()


def test_fresh_errors_stay_far_below_the_proved_bound(secret, public):
    errors = np.concatenate([secret._phase(public.zeros()) for _ in range(20)])
    assert 0 < np.abs(errors).max() < PK18_44.noise_bound
    # Measured standard deviation of public-key encryption with a special prime: about 15.
    assert 10 < errors.std() < 25


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("total", [1, 7, 127])
def test_the_error_bound_is_where_the_proof_says(secret, public, sign, total):
    """The worst error that A = `total` honest clients could have opens; one more is refused."""
    zeros = public.zeros()
    error = secret._phase(zeros)
    value = sign * total * LIMIT
    for size, opens in (
        (PK18_44.noise_bound * total - 1, True),
        (PK18_44.noise_bound * total, False),
    ):
        wanted = np.zeros(DEGREE, np.int64)
        wanted[0] = value * PK18_44.scale + sign * size
        shifted = zeros.astype(np.int64)
        shifted[0] = (shifted[0] + wanted - error) % PRIME
        body = pack(shifted.astype(np.uint64), PK18_44.residue_bits)
        if opens:
            assert secret.open_sum(body, 1, total).tolist() == [value]
        else:
            with pytest.raises(ProtocolError, match="honest"):
                secret.open_sum(body, 1, total)


def test_values_beyond_the_clamp_and_non_zero_padding_are_refused(secret, public):
    zeros = public.zeros().astype(np.int64)
    for place, value, size in ((0, LIMIT + 1, 1), (5, 1, 5)):
        shifted = zeros.copy()
        shifted[0, place] = (shifted[0, place] + value * PK18_44.scale) % PRIME
        body = pack(shifted.astype(np.uint64), PK18_44.residue_bits)
        with pytest.raises(ProtocolError, match="honest"):
            secret.open_sum(body, size, 1)


def test_another_key_opens_nothing_and_zeros_are_no_ciphertext(secret, make_released):
    stranger = PublicKey(PK18_44, RoundSecret(PK18_44).public_body)
    body = encrypt(stranger, make_released(np.arange(50)))
    with pytest.raises(ProtocolError):
        secret.open_sum(body, 50, 1)
    with pytest.raises(ProtocolError):
        secret.open_sum(bytes(len(body)), 50, 1)


def test_adding_the_message_to_an_encryption_of_zero_adds_no_error(public, secret, make_released):
    """|encoding error| = 0: the phase minus Δ·m is exactly the error of that encryption of zero."""
    values = np.random.default_rng(1).integers(-LIMIT, LIMIT + 1, DEGREE)
    fixed = public.zeros()

    class Fixed:
        preset = PK18_44

        def zeros(self):
            return fixed

    residues = unpack(encrypt(Fixed(), make_released(values)), 44, (PRIME,)).reshape(2, -1)
    assert (secret._phase(residues) - secret._phase(fixed) == values * PK18_44.scale).all()


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros(3, np.int64), b"x", None, [1, 2]])
def test_encrypt_takes_nothing_but_a_release(public, wrong):
    with pytest.raises(TypeError, match="Released"):
        encrypt(public, wrong)


def test_encrypt_refuses_a_look_alike_and_a_subclass(public, make_released):
    class LookAlike:
        values = np.zeros(3, np.int64)

    made = make_released(np.zeros(3))
    subclass = type("Sub", (type(made),), {})
    for wrong in (LookAlike(), object.__new__(subclass)):
        with pytest.raises(TypeError, match="Released"):
            encrypt(public, wrong)


def test_mypy_refuses_what_encrypt_refuses(tmp_path):
    source = tmp_path / "wrong.py"
    source.write_text(
        "import numpy as np\n"
        "from protocols.tenseal_ckks import PublicKey, encrypt\n"
        "def send(key: PublicKey) -> bytes:\n"
        "    return encrypt(key, np.zeros(3), (0, 3))\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 'expected "Released"' in result.stdout


def test_a_span_encrypts_its_part_of_the_release_alone(secret, public, make_released):
    made = make_released(np.arange(-20, 21))
    for start, stop in ((0, 41), (0, 1), (7, 30), (40, 41)):
        body = encrypt_span(public, made, (start, stop))
        opened = secret.open_sum(body, stop - start, 1)
        assert (opened == made.values[start:stop]).all()


def test_encrypt_refuses_integers_wider_than_the_preset(public, make_released):
    for value in (LIMIT + 1, -LIMIT - 1):
        with pytest.raises(PrivacyError, match="wider"):
            encrypt(public, make_released(np.array([0, value])))


def test_equal_inputs_encrypt_to_different_bytes(public, make_released):
    made = make_released(np.arange(9))
    assert len({encrypt(public, made) for _ in range(20)}) == 20


def test_the_sum_is_the_same_bytes_in_any_order_and_streamed(public, make_released):
    bodies = [encrypt(public, make_released(np.arange(9) * k)) for k in range(4)]
    alphas = [3, 1, 4, 2]
    once = weighted_sum(PK18_44, 9, bodies, alphas)
    backwards = weighted_sum(PK18_44, 9, reversed(bodies), reversed(alphas))
    streamed = WeightedSum(PK18_44, 9)
    for body, alpha in zip(bodies, alphas, strict=True):
        streamed.add(body, alpha)
    assert once == backwards == streamed.body()
    with pytest.raises(ValueError, match="shorter"):
        weighted_sum(PK18_44, 9, bodies, alphas[:-1])


@pytest.mark.parametrize("alpha", [0, -1, 128, 1 << 40])
def test_the_sum_refuses_weights_outside_the_preset(public, make_released, alpha):
    body = encrypt(public, make_released(np.arange(9)))
    with pytest.raises(ProtocolError, match="weight"):
        weighted_sum(PK18_44, 9, [body], [alpha])


def test_residues_pack_and_unpack_and_must_be_reduced():
    draw = np.random.default_rng(2)
    for bits, modulus in ((44, PRIME), (30, 1073692673)):
        values = draw.integers(0, modulus, 4096).astype(np.uint64)
        values[:2] = 0, modulus - 1
        body = pack(values, bits)
        assert len(body) == 4096 * bits // 8
        assert (unpack(body, bits, (modulus,))[0] == values).all()
        # Independently: the body is one little-endian number.
        number = sum(int(value) << (bits * at) for at, value in enumerate(values))
        assert int.from_bytes(body, "little") == number
        values[7] = modulus
        with pytest.raises(ProtocolError, match="modulus"):
            unpack(pack(values, bits), bits, (modulus,))


def test_public_keys_of_other_lengths_or_unreduced_residues_are_refused(secret):
    body = secret.public_body
    assert len(body) == PK18_44.public_key_bytes
    for wrong in (b"", body[:-1], body + b"\0", b"\xff" * len(body)):
        with pytest.raises(ProtocolError):
            PublicKey(PK18_44, wrong)


def test_a_round_secret_is_not_pickled_and_says_nothing(secret):
    with pytest.raises(ProtocolError, match="pickled"):
        pickle.dumps(secret)
    assert "SecretKey" not in repr(vars(secret))


def test_presets_name_the_primes_that_seal_uses_and_prove_what_they_say():
    for name, ring in PRESETS.items():
        assert preset(name) is ring
        ring.prove([ring.largest_total])
        with pytest.raises(ConfigError, match="Σα ≤ 127"):
            ring.prove([ring.largest_total, 1])
        for modulus in (ring.prime, ring.special):
            # Fermat to several bases: the primes are SEAL's, this guards against a typing error.
            assert all(pow(base, modulus - 1, modulus) == 1 for base in (2, 3, 5, 7, 11))
    with pytest.raises(ConfigError, match="pk18-44"):
        preset("pk19-44")


def test_the_proof_is_tight_against_brute_force_arithmetic():
    """`prove` agrees with the two inequalities in exact rational form for many parameters."""
    for scale_bits in range(8, 24):
        for total in (1, 2, 5, 63, 64, 127, 128, 200):
            ring = object.__new__(Preset)
            fields = {"name": "x", "degree": 4096, "prime": PRIME, "special": PK18_44.special}
            for key, value in {**fields, "scale": 1 << scale_bits, "bits": 18}.items():
                object.__setattr__(ring, key, value)
            noise = 2050 * total
            holds = 2**scale_bits / 2 > noise and 2**17 * total * 2**scale_bits + noise < PRIME / 2
            assert holds == (total <= ring.largest_total)
            if not holds:
                with pytest.raises(ConfigError, match="no exact sum"):
                    ring.prove([total])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"degree": 2048}, "modulus bits"),
        ({"degree": 1000}, "modulus bits"),
        ({"prime": PRIME + 2}, "modulo twice the degree"),
        ({"special": 40961}, "special prime"),
        ({"scale": 4000}, "no exact sum"),
        ({"bits": 30}, "no exact sum"),
        (
            {"prime": (1 << 58) + 1, "special": (1 << 44) + 1, "degree": 8192, "scale": 1 << 30},
            "word",
        ),
    ],
)
def test_presets_that_are_not_sound_cannot_be_made(change, why):
    fields = {name: getattr(PK18_44, name) for name in PK18_44.__dataclass_fields__}
    with pytest.raises(ConfigError, match=why):
        Preset(**{**fields, **change})


def test_nothing_is_printed_and_one_thread_does_the_work():
    program = (
        "import numpy as np, threading, os\n"
        "from protocols.rlwe import PK18_44 as P\n"
        "from protocols.tenseal_ckks import RoundSecret, PublicKey\n"
        "key = PublicKey(P, RoundSecret(P).public_body)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "[key.zeros() for _ in range(9)]\n"
        "assert len(os.listdir('/proc/self/task')) == before\n"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == result.stderr == ""


def test_a_preset_with_primes_that_seal_does_not_choose_is_refused():
    fields = {name: getattr(PK18_44, name) for name in PK18_44.__dataclass_fields__}
    swapped = Preset(**{**fields, "prime": PK18_44.special, "special": PK18_44.prime})
    with pytest.raises(ProtocolError, match="other primes"):
        RoundSecret(swapped)
