import math
import os
import pickle

import pytest

from protocols.chain import GENESIS, SigningKey, canonical, digest, link, verify
from protocols.errors import ProtocolError

# RFC 8032, section 7.1, test 2.
SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_canonical_json_sorts_keys_and_writes_numbers_one_way() -> None:
    # The number and key order of RFC 8785, section 3.2.2 and 3.2.3.
    value = {"numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 1e-27], "literals": [None, True]}
    expected = b'{"literals":[null,true],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27]}'
    assert canonical(value) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53, {1: "a"}, {"a": object()}, b"x"])
def test_what_json_cannot_say_is_refused(value: object) -> None:
    with pytest.raises(ProtocolError, match="no canonical JSON form"):
        canonical(value)


def test_digest_is_sha256() -> None:
    # FIPS 180-4, "abc".
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest(b"abc") == expected


def test_a_chain_depends_on_every_line_and_their_order() -> None:
    first = link(link(GENESIS, b"a"), b"b")
    assert first == digest(bytes.fromhex(digest(bytes(32) + b"a")) + b"b")
    assert first != link(link(GENESIS, b"b"), b"a")
    assert first != link(GENESIS, b"ab")


def test_signatures_follow_the_standard() -> None:
    key = SigningKey(SECRET)
    assert key.public == PUBLIC
    assert key.sign(b"\x72") == SIGNATURE
    verify(PUBLIC, b"\x72", SIGNATURE)


@pytest.mark.parametrize(
    ("public", "message", "signature"),
    [
        (PUBLIC, b"\x73", SIGNATURE),
        (PUBLIC, b"\x72", SIGNATURE[:-1] + b"\x01"),
        (SigningKey(bytes(32)).public, b"\x72", SIGNATURE),
        (PUBLIC[:-1], b"\x72", SIGNATURE),
        (PUBLIC, b"\x72", b""),
    ],
)
def test_a_wrong_signature_is_refused(public: bytes, message: bytes, signature: bytes) -> None:
    with pytest.raises(ProtocolError, match="does not verify"):
        verify(public, message, signature)


def test_keys_come_from_the_random_source() -> None:
    assert SigningKey.generate(lambda count: SECRET[:count]).private_bytes() == SECRET
    assert SigningKey.generate(os.urandom).public != SigningKey.generate(os.urandom).public


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ProtocolError, match="31 bytes"):
        SigningKey(bytes(31))


def test_a_signing_key_neither_prints_nor_pickles() -> None:
    key = SigningKey(SECRET)
    assert SECRET.hex() not in repr(key)
    with pytest.raises(ProtocolError, match="may not be pickled"):
        pickle.dumps(key)
