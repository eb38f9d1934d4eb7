"""RFC 6962 trees: known roots, every proof of small trees, and every way to get one wrong."""

import hashlib
from itertools import combinations_with_replacement

import pytest

from protocols.errors import ProtocolError
from protocols.merkle import EMPTY, Tree, leaf_hash, verify_consistency, verify_inclusion

# The inputs and roots of the Certificate Transparency reference implementation.
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657"]
INPUTS += ["606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAVES = [leaf_hash(b"line %d" % number) for number in range(64)]
TREE = Tree(LEAVES)
PAIRS = list(combinations_with_replacement(range(1, 65), 2))


def by_definition(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, word for word."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256().digest()
    k = max(2**i for i in range(10) if 2**i < len(leaves))
    joined = by_definition(leaves[:k]) + by_definition(leaves[k:])
    return hashlib.sha256(b"\x01" + joined).digest()


@pytest.mark.parametrize("size", range(9))
def test_known_roots(size: int) -> None:
    leaves = [leaf_hash(bytes.fromhex(text)) for text in INPUTS[:size]]
    assert Tree(leaves).root().hex() == by_definition(leaves).hex() == ROOTS[size]


def test_every_prefix_of_a_grown_tree_has_the_root_of_its_definition() -> None:
    assert [TREE.root(n) for n in range(65)] == [by_definition(LEAVES[:n]) for n in range(65)]


def test_every_inclusion_proof_and_no_other_leaf_place_or_size() -> None:
    for size in range(1, 65):
        root = TREE.root(size)
        for index in range(size):
            path = TREE.inclusion(index, size)
            verify_inclusion(LEAVES[index], index, size, path, root)
            for leaf, at in ((LEAVES[(index + 1) % 64], index), (LEAVES[index], (index + 1) % 64)):
                with pytest.raises(ProtocolError, match="not proved"):
                    verify_inclusion(leaf, at, size, path, root)


def test_all_2080_consistency_proofs() -> None:
    assert len(PAIRS) == 2080
    for old, size in PAIRS:
        proof = TREE.consistency(old, size)
        verify_consistency(old, TREE.root(old), size, TREE.root(size), proof)


def test_no_consistency_proof_serves_another_tree() -> None:
    """Every pair with one leaf of the old part changed, and with its proof damaged."""
    for old, size in PAIRS:
        proof, root = TREE.consistency(old, size), TREE.root(size)
        other = Tree([leaf_hash(b"another"), *LEAVES[1:old]]).root()
        wrong = [(other, proof), (TREE.root(old), [*proof, EMPTY])]
        wrong += [(TREE.root(old), proof[:-1])] if proof else []
        wrong += [(TREE.root(old), [EMPTY, *proof[1:]])] if proof else []
        for old_root, steps in wrong:
            with pytest.raises(ProtocolError, match="not proved"):
                verify_consistency(old, old_root, size, root, steps)


def test_the_empty_tree_is_continued_by_every_tree() -> None:
    verify_consistency(0, EMPTY, 5, TREE.root(5), [])
    with pytest.raises(ProtocolError):
        verify_consistency(0, LEAVES[0], 5, TREE.root(5), [])
    with pytest.raises(ProtocolError):
        verify_consistency(6, TREE.root(6), 5, TREE.root(5), [])


@pytest.mark.parametrize("ask", [lambda: TREE.root(65), lambda: TREE.inclusion(3, 3)])
def test_what_is_not_in_the_tree_is_refused(ask) -> None:
    with pytest.raises(ProtocolError, match="no such part"):
        ask()
