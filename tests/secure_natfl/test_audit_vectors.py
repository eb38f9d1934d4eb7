"""Audit vectors: the product and the stand-alone verifier agree on every one of them."""

import hashlib
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from protocols.chain import SigningKey, verify
from protocols.errors import NatflError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "vectors" / "audit"
MAKE = runpy.run_path(str(FOLDER / "make.py"))
ALONE = runpy.run_path(str(ROOT / "secure_natfl" / "audit" / "standalone.py"))
DOCUMENT = json.loads((FOLDER / "logs.json").read_text(encoding="utf-8"))
VECTORS = DOCUMENT["vectors"]

# RFC 8032, section 7.1: secret, public, message, signature of tests 1, 2, 3 and SHA(abc).
SIGNATURES = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        hashlib.sha512(b"abc").hexdigest(),
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
        "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
]
ORDER = 2**252 + 27742317777372353535851937790883648493


def texts(vector: dict[str, Any]) -> tuple[str, str]:
    return DOCUMENT["texts"][vector["log"]], DOCUMENT["texts"][vector["checkpoints"]]


def alone(log: str, checkpoints: str) -> dict[str, Any]:
    """What the stand-alone verifier makes of a vector."""
    try:
        records, leaves, head = ALONE["chain"](log.encode())
        ALONE["checkpoints"](checkpoints.encode(), records, leaves)
    except (ALONE["Wrong"], ValueError, KeyError, TypeError, IndexError):
        return {"refused": True}
    return {"entries": len(records), "head": head, "root": ALONE["root"](leaves).hex()}


def test_there_are_enough_and_a_quarter_is_negative() -> None:
    refused = [one for one in VECTORS if one["expected"] == {"refused": True}]
    assert len(VECTORS) >= 40
    assert len(refused) >= len(VECTORS) / 4
    assert len(VECTORS) - len(refused) >= 10


@pytest.mark.parametrize("vector", VECTORS, ids=[one["name"] for one in VECTORS])
def test_both_verifiers_agree(vector: dict[str, Any]) -> None:
    assert MAKE["judge"](*texts(vector)) == vector["expected"]
    assert alone(*texts(vector)) == vector["expected"]


@pytest.mark.parametrize(("secret", "public", "message", "signature"), SIGNATURES)
def test_signatures_of_rfc_8032_and_their_malleable_twins(
    secret: str, public: str, message: str, signature: str
) -> None:
    key, said = SigningKey(bytes.fromhex(secret)), bytes.fromhex(message)
    good = bytes.fromhex(signature)
    assert (key.public.hex(), key.sign(said)) == (public, good)
    verify(key.public, said, good)
    ALONE["signed"](public, said, good, "vector")
    twin = (int.from_bytes(good[32:], "little") + ORDER).to_bytes(32, "little")
    wrong = [good[:32] + twin, bytes([good[0] ^ 1]) + good[1:], good[:-1], b"", good + b"\0"]
    for other, bad in [(said, one) for one in wrong] + [(said + b"x", good)]:
        with pytest.raises(NatflError, match="does not verify"):
            verify(key.public, other, bad)
        with pytest.raises(ALONE["Wrong"], match="does not verify"):
            ALONE["signed"](public, other, bad, "vector")


def test_epsilon_by_hand_is_the_accountants() -> None:
    from protocols.accounting import epsilon_from_rho

    for rho in (1e-6, 0.01, 0.2, 0.5, 1.0, 2.5, 40.0):
        for delta in (1e-9, 1e-5, 1e-3):
            assert ALONE["epsilon"](rho, delta) == pytest.approx(
                epsilon_from_rho(rho, delta), rel=1e-9
            )
