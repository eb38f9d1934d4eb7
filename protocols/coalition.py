"""A coalition, and the rules by which one reads a single contribution: pure functions.

All other clients of a group always do, for the published sum less their own parts is the rest;
`protocols.promises` adds that to the rule of each mode.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Coalition:
    """Parties that pool all that they saw and keep, about one group of which nobody dropped out.

    group: its clients in the plan's order. clients: those of the group in the coalition.
    holders: key holders in it, the decryptor or whoever keeps key shares; where clients keep
    them, a client brings its own. threshold: how many holders open together. network: it sees
    the bytes of every message.
    """

    group: tuple[str, ...]
    clients: frozenset[str] = frozenset()
    holders: frozenset[str] = frozenset()
    server: bool = False
    network: bool = False
    threshold: int = 1

    @property
    def sees_uploads(self) -> bool:
        """Whether contributions pass by it as they travel."""
        return self.server or self.network

    @property
    def opens(self) -> bool:
        """Whether it has what it takes to open by itself."""
        return len(self.holders) >= self.threshold

    @property
    def honest(self) -> tuple[str, ...]:
        """The clients of the group that are not in it."""
        return tuple(name for name in self.group if name not in self.clients)


def nobody(_: Coalition) -> tuple[str, ...]:
    """The rule of masks in pairs: sums are all there is to open."""
    return ()


def whoever_sees_them(coalition: Coalition) -> tuple[str, ...]:
    """The rule where contributions travel in the clear, or under a key that is given away."""
    return coalition.honest if coalition.sees_uploads else ()


def enough_shares(coalition: Coalition) -> tuple[str, ...]:
    """The rule of key shares: enough of them, and the ciphertexts to use them on."""
    return coalition.honest if coalition.opens and coalition.sees_uploads else ()


def between_two(coalition: Coalition) -> tuple[str, ...]:
    """The rule of the ring: those whose two neighbours are in it, with the decryptor."""
    if not coalition.opens:
        return ()
    ring, size = coalition.group, len(coalition.group)
    return tuple(
        name
        for at, name in enumerate(ring)
        if {ring[at - 1], ring[(at + 1) % size]} <= coalition.clients
    )
