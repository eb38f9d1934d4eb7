import os
import pickle

import pytest

from protocols.errors import ProtocolError
from protocols.sealing import OVERHEAD, PUBLIC_BYTES, SealingKey, seal_to

CONTEXT = ("plan", "g0", "a", "b.holder")


@pytest.fixture(scope="module")
def key():
    return SealingKey()


@pytest.mark.parametrize("size", [0, 1, 32, 9984, 1 << 20])
def test_what_is_sealed_opens_and_is_longer_by_the_stated_bytes(key, size):
    content = os.urandom(size)
    sealed = seal_to(key.public, content, *CONTEXT)
    assert key.open(sealed, *CONTEXT) == content
    assert len(sealed) == size + OVERHEAD
    assert len(key.public) == PUBLIC_BYTES


def test_equal_contents_give_different_bytes_that_do_not_show_them(key):
    content = bytes(range(200))
    sealed = [seal_to(key.public, content, *CONTEXT) for _ in range(10)]
    assert len(set(sealed)) == 10
    assert not any(content[:16] in blob for blob in sealed)


@pytest.mark.parametrize(
    "other",
    [
        ("other", "g0", "a", "b.holder"),
        ("plan", "g1", "a", "b.holder"),
        ("plan", "g0", "c", "b.holder"),
        ("plan", "g0", "a", "c.holder"),
        ("plan", "g0", "a"),
        ("plang0", "a", "b.holder"),
        ("plan", "g0", "ab.holder"),
        ("plan", "g0", "a", "b.holder", ""),
        (),
    ],
)
def test_it_opens_in_its_own_context_alone(key, other):
    sealed = seal_to(key.public, bytes(32), *CONTEXT)
    with pytest.raises(ProtocolError, match="do not open"):
        key.open(sealed, *other)


def test_another_partys_key_does_not_open_it(key):
    sealed = seal_to(SealingKey().public, bytes(32), *CONTEXT)
    with pytest.raises(ProtocolError, match="do not open"):
        key.open(sealed, *CONTEXT)


def test_one_changed_bit_in_any_byte_and_every_cut_are_refused(key):
    """All 1168 places; 40 lengths from nothing to one byte too many."""
    sealed = seal_to(key.public, bytes(32), *CONTEXT)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1 << place % 8
        with pytest.raises(ProtocolError, match="do not open"):
            key.open(bytes(changed), *CONTEXT)
    for stop in (*range(0, len(sealed), 30), len(sealed) - 1):
        with pytest.raises(ProtocolError, match="do not open"):
            key.open(sealed[:stop], *CONTEXT)
    with pytest.raises(ProtocolError, match="do not open"):
        key.open(sealed + b"\0", *CONTEXT)


def test_bytes_that_are_no_public_key_are_refused(key):
    """Among them keys of small order, with which the curve would give a known secret."""
    wrong = [
        b"",
        key.public[:-1],
        key.public + b"\0",
        bytes(PUBLIC_BYTES),
        b"\xff" * PUBLIC_BYTES,
        key.public[:-32] + bytes(32),
        key.public[:-32] + b"\1" + bytes(31),
    ]
    for public in wrong:
        with pytest.raises(ProtocolError, match="not a sealing key"):
            seal_to(public, bytes(32), *CONTEXT)


def test_either_half_of_another_key_keeps_it_shut(key):
    """A hybrid: who has the curve's half only, or the lattice's, opens nothing."""
    other = SealingKey()
    for public in (key.public[:-32] + other.public[-32:], other.public[:-32] + key.public[-32:]):
        sealed = seal_to(public, bytes(32), *CONTEXT)
        for holder in (key, other):
            with pytest.raises(ProtocolError, match="do not open"):
                holder.open(sealed, *CONTEXT)


def test_a_sealing_key_is_not_pickled_and_says_nothing(key):
    with pytest.raises(ProtocolError, match="pickled"):
        pickle.dumps(key)
    assert "private" not in repr(key).lower()
    assert len({SealingKey().public for _ in range(20)}) == 20
