"""Merkle trees over log lines: roots, inclusion and consistency (RFC 6962, section 2.1).

A leaf is SHA-256 of 0x00 and the line, a node SHA-256 of 0x01 and its two children; a tree of n
leaves splits at the largest power of two below n. Hashes are 32 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from protocols.errors import ProtocolError

EMPTY = hashlib.sha256().digest()
"""The root of no leaves."""


def leaf_hash(line: bytes) -> bytes:
    """The leaf of one line, without its newline."""
    return hashlib.sha256(b"\x00" + line).digest()


class Tree:
    """A tree that grows leaf by leaf; it keeps every complete subtree's root.

    Memory is two hashes per leaf. `root`, `inclusion` and `consistency` speak of the first `size`
    leaves, 0 ≤ size ≤ len(tree).
    """

    def __init__(self, leaves: Sequence[bytes] = ()) -> None:
        self._levels: list[list[bytes]] = [[]]
        for leaf in leaves:
            self.append(leaf)

    def __len__(self) -> int:
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """Add the hash of one more leaf."""
        level = 0
        self._levels[0].append(leaf)
        while len(self._levels[level]) % 2 == 0:
            left, right = self._levels[level][-2:]
            level += 1
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(_node(left, right))

    def root(self, size: int | None = None) -> bytes:
        """The root of the first `size` leaves, of all by default."""
        size = len(self) if size is None else size
        self._demand(0 <= size <= len(self), size)
        return self._subtree(0, size) if size else EMPTY

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """The audit path of leaf `index` in the first `size` leaves, from the leaf upwards."""
        self._demand(0 <= index < size <= len(self), size)
        return self._path(index, 0, size)

    def consistency(self, old: int, size: int) -> list[bytes]:
        """What shows that the first `size` leaves continue the first `old`, 0 < old ≤ size."""
        self._demand(0 < old <= size <= len(self), size)
        return self._proof(old, 0, size, whole=True)

    def _subtree(self, start: int, stop: int) -> bytes:
        width = stop - start
        if width & (width - 1) == 0:
            level = width.bit_length() - 1
            return self._levels[level][start >> level]
        middle = start + _split(width)
        return _node(self._subtree(start, middle), self._subtree(middle, stop))

    def _path(self, index: int, start: int, stop: int) -> list[bytes]:
        if stop - start == 1:
            return []
        middle = start + _split(stop - start)
        if index < middle:
            return [*self._path(index, start, middle), self._subtree(middle, stop)]
        return [*self._path(index, middle, stop), self._subtree(start, middle)]

    def _proof(self, old: int, start: int, stop: int, *, whole: bool) -> list[bytes]:
        if old == stop:
            return [] if whole else [self._subtree(start, stop)]
        middle = start + _split(stop - start)
        if old <= middle:
            rest = self._subtree(middle, stop)
            return [*self._proof(old, start, middle, whole=whole), rest]
        return [*self._proof(old, middle, stop, whole=False), self._subtree(start, middle)]

    def _demand(self, holds: bool, size: int) -> None:
        if not holds:
            raise ProtocolError(f"no such part of a tree of {len(self)} leaves: {size}")


def verify_inclusion(
    leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes
) -> None:
    """Return if `leaf` is number `index` (from 0) of the `size` leaves under `root`.

    Whoever has a signed root and one line runs it; ProtocolError otherwise. RFC 9162, 2.1.3.2.
    """
    _refuse(not 0 <= index < size, "inclusion")
    place, last, found = index, size - 1, leaf
    for other in path:
        _refuse(last == 0, "inclusion")
        if place % 2 or place == last:
            found = _node(other, found)
            while place % 2 == 0 and place:
                place, last = place >> 1, last >> 1
        else:
            found = _node(found, other)
        place, last = place >> 1, last >> 1
    _refuse(last != 0 or found != root, "inclusion")


def verify_consistency(
    old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]
) -> None:
    """Return if the tree of `size` leaves under `root` continues that of `old` under `old_root`.

    Clients run it before they co-sign a checkpoint; ProtocolError otherwise. An empty old tree is
    continued by every tree. RFC 9162, 2.1.4.2.
    """
    _refuse(not 0 <= old <= size, "consistency")
    if old in (0, size):
        expected = EMPTY if old == 0 else root
        _refuse(bool(proof) or old_root != expected, "consistency")
        return
    steps = list(proof) if old & (old - 1) else [old_root, *proof]
    _refuse(not steps, "consistency")
    place, last = old - 1, size - 1
    while place % 2:
        place, last = place >> 1, last >> 1
    first = second = steps[0]
    for other in steps[1:]:
        _refuse(last == 0, "consistency")
        if place % 2 or place == last:
            first, second = _node(other, first), _node(other, second)
            while place % 2 == 0 and place:
                place, last = place >> 1, last >> 1
        else:
            second = _node(second, other)
        place, last = place >> 1, last >> 1
    _refuse(last != 0 or first != old_root or second != root, "consistency")


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(width: int) -> int:
    """The largest power of two below `width`, which is at least 2."""
    return 1 << (width - 1).bit_length() - 1


def _refuse(wrong: bool, what: str) -> None:
    if wrong:
        raise ProtocolError(
            f"{what} is not proved",
            where="log tree",
            why="the hashes do not lead to the signed root",
            fix="ask for the log itself, and compare it with other keepers' checkpoints",
        )
