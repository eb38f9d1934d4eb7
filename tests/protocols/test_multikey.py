import math
from dataclasses import replace

import pytest

from protocols.errors import ConfigError
from protocols.multikey import (
    MK18_39,
    MK18_49,
    MULTIKEY_PRESETS,
    MultiKeyPreset,
    multikey_preset,
)

PRESETS = [MK18_39, MK18_49]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_sound(preset: MultiKeyPreset) -> None:
    assert preset.q == math.prod(preset.primes)
    # 54 bits of modulus give 128 bits of security at degree 2048; five are spared.
    assert preset.degree == 2048
    assert preset.q < 2**49
    for prime in preset.primes:
        assert all(prime % divisor for divisor in range(2, prime))
        assert prime % (2 * preset.degree) == 1
        assert 64 * (prime - 1) ** 2 < 2**53
    assert (preset.bits, preset.dropped, preset.value_limit) == (18, 10, 131_071)


def test_sizes_on_the_wire() -> None:
    assert (MK18_39.wire_bits, MK18_49.wire_bits) == (29, 39)
    assert (MK18_39.share_bytes, MK18_49.share_bytes) == (2048 * 39 // 8, 2048 * 50 // 8)
    assert [MK18_39.blocks(size) for size in (1, 2048, 2049, 30_000)] == [1, 1, 2, 15]
    assert MK18_39.ciphertext_bytes(30_000) == 15 * 2048 * 29 // 8
    assert MK18_39.wire_limit == max(
        (b + 512 >> 10) + 1 for b in range(MK18_39.q - 2048, MK18_39.q)
    )


def test_widths_and_bounds_of_errors() -> None:
    assert [MK18_39.error_width(heaviest) for heaviest in (1, 4)] == [8.25, 33.0]
    assert [MK18_39.noise_bound(heaviest) for heaviest in (1, 4)] == [116 + 512, 462 + 512]


@pytest.mark.parametrize(
    ("preset", "alphas"),
    [
        (MK18_39, [4] * 8),
        (MK18_39, [1] * 32),
        (MK18_39, [4, 3, 2, 1]),
        (MK18_49, [4] * 256),
        (MK18_49, [1] * 1024),
        (MK18_49, [1]),
    ],
)
def test_weights_that_are_proved(preset: MultiKeyPreset, alphas: list[int]) -> None:
    preset.prove(alphas)
    assert preset.largest_total(max(alphas)) >= sum(alphas)


@pytest.mark.parametrize(
    ("preset", "alphas", "advice"),
    [
        (MK18_39, [1] * 33, "Σα ≤ 32 and none above 1"),
        (MK18_39, [4] * 8 + [1], "Σα ≤ 32 and none above 4"),
        (MK18_39, [5, 5, 5, 5, 5, 5], "Σα ≤ 29 and none above 5"),
        (MK18_39, [17], "lower the heaviest"),
        (MK18_39, [], "weights from 1 on"),
        (MK18_39, [0], "weights from 1 on"),
        (MK18_39, [3, 0, 1], "weights from 1 on"),
        (MK18_39, [3, -1, 1], "weights from 1 on"),
        (MK18_49, [1] * 1037, "Σα ≤ 1036"),
    ],
)
def test_other_weights_are_refused_with_what_would_do(
    preset: MultiKeyPreset, alphas: list[int], advice: str
) -> None:
    with pytest.raises(ConfigError, match=advice):
        preset.prove(alphas)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("heaviest", [1, 2, 4, 9])
def test_the_largest_total_is_where_the_inequalities_end(
    preset: MultiKeyPreset, heaviest: int
) -> None:
    def exact(total: int) -> bool:
        noise = total * (math.ceil(14 * 8.25 * heaviest) + 512)
        return preset.scale > 2 * noise and 2 * (2**17 * total * preset.scale + noise) < preset.q

    largest = preset.largest_total(heaviest)
    assert exact(largest)
    assert not exact(largest + 1)


def test_scales_one_step_outside_the_proof_are_refused() -> None:
    alphas = [4] * 8
    for inside, outside in ((62_337, 62_336), (64_008, 64_009)):
        replace(MK18_39, scale=inside).prove(alphas)
        with pytest.raises(ConfigError, match="no exact sum"):
            replace(MK18_39, scale=outside).prove(alphas)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"primes": (1032193, 4093)}, "not distinct primes"),
        ({"primes": (1032193, 1032193)}, "not distinct primes"),
        ({"primes": (1032193, 4096 * 3 + 1, 4096 * 5 + 1)}, "not distinct primes"),
        ({"primes": (1032193, 520193 + 4096)}, "not distinct primes"),
        ({"primes": (4096 * 258 + 1, 12289)}, "not distinct primes"),
        ({"primes": (1032193, 995329, 12289)}, "modulus bits"),
        ({"degree": 1024}, "modulus bits"),
        ({"degree": 4096}, "not distinct primes"),
        ({"degree": 2000}, "modulus bits"),
        ({"scale": 1000}, "no exact sum"),
        ({"bits": 24}, "no exact sum"),
        ({"primes": MK18_49.primes, "bits": 2, "dropped": 0, "scale": 2**24}, "machine word"),
    ],
)
def test_unsound_presets_cannot_be_made(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(MK18_39, **changes)


def test_presets_by_name() -> None:
    assert [multikey_preset(name) for name in ("mk18-39", "mk18-49")] == PRESETS
    assert set(MULTIKEY_PRESETS) == {"mk18-39", "mk18-49"}
    with pytest.raises(ConfigError, match="unknown preset 'mk0'"):
        multikey_preset("mk0")
