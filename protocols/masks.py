"""Pairwise masks (Bonawitz et al., CCS 2017) over the residues of ciphertexts.

Each two clients i < j of a plan share a fresh seed k_ij per attempt. For a group, client i sends

    c_i + α_i⁻¹·M_i mod q,   M_i = Σ_{j>i} PRG(k_ij) − Σ_{j<i} PRG(k_ij) mod q,

over every residue of both polynomials of all its blocks. ΣM_i = 0, so Σα_i·(c_i + α_i⁻¹·M_i) is
Σα_i·c_i to the bit, for the clients and weights of the plan and no others. A single upload is
uniform even to who holds the round's key, as long as one other client of the group keeps its
seeds to itself. There is no recovery of seeds: without a client of the group nothing cancels, and
a new attempt begins with new seeds.

The stream PRG(k) of a pair's 32-byte seed is the keystream of AES-256 in counter mode (SP
800-38A), counter block starting at sixteen zero bytes, under the key

    SHA-256(JSON ["pairwise mask", plan id, group] in RFC 8785 | seed)

A residue modulo q comes from a word of eight bytes, little-endian, cut to the bits of q: words
that are not below q are skipped. Residues are exactly uniform if the bytes are. The first ones
are block 0's c₀, then its c₁, then block 1's c₀, as in a body.
"""

import hashlib
import os
from collections.abc import Iterable
from typing import Final, TypeVar

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocols.chain import RandomBytes, canonical
from protocols.envelope import seal, unseal
from protocols.errors import ProtocolError
from protocols.messages import Group, Hop, MaskKey, MaskSeed
from protocols.parties import Accepted, Client
from protocols.residues import Residues, pack, unpack
from protocols.rlwe import Preset, preset
from protocols.sealing import OVERHEAD, PUBLIC_BYTES, SealingKey, seal_to

SEED_BYTES: Final = 32
FromPeer = TypeVar("FromPeer", MaskKey, MaskSeed, Hop)


def uniform(prime: int, count: int, random: RandomBytes) -> Residues:
    """The first `count` residues modulo a prime below 2^64 that the bytes of `random` give."""
    bits, found = np.uint64((1 << prime.bit_length()) - 1), np.empty(0, np.uint64)
    while found.size < count:
        words = np.frombuffer(random(8 * (count - found.size)), "<u8") & bits
        found = np.concatenate([found, words[words < prime]])
    return found


def pair_stream(seed: bytes, plan_id: str, group: str) -> RandomBytes:
    """The stream of a pair's seed for one group of one plan; each call reads on."""
    key = hashlib.sha256(canonical(["pairwise mask", plan_id, group]) + seed).digest()
    cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return lambda count: cipher.update(bytes(count))


def mask_sum(
    prime: int, count: int, later: Iterable[RandomBytes], earlier: Iterable[RandomBytes]
) -> Residues:
    """M_i: the streams of pairs with later clients less those of pairs with earlier ones."""
    total = np.zeros(count, np.uint64)  # residues below 2^45, of fewer than 2^19 pairs
    for stream in later:
        total += uniform(prime, count, stream)
    for stream in earlier:
        total += np.uint64(prime) - uniform(prime, count, stream)
    return total % np.uint64(prime)


def mask_body(ring: Preset, body: bytes, mask: Residues, alpha: int) -> bytes:
    """The body c + α⁻¹·M mod q; α is from the plan, 1 ≤ α ≤ largest_total."""
    prime = ring.prime
    # The multiple of q that makes M divisible by α: M + q·k < α·q, and no product passes 2^62.
    below = np.uint64(-pow(prime, -1, alpha) % alpha)
    multiple = mask % np.uint64(alpha) * below % np.uint64(alpha)
    divided = (mask + np.uint64(prime) * multiple) // np.uint64(alpha)
    residues = unpack(body, ring.residue_bits, (prime,))[0]
    return pack((residues + divided) % np.uint64(prime), ring.residue_bits)


class Peer:
    """A client among its peers of one attempt: its sealing key, and theirs as they signed them.

    `names` are the peers, all clients that share a group with it which is not open yet, in the
    plan's order. It lives in the client's memory and ends with the attempt.
    """

    def __init__(self, client: Client, accepted: Accepted) -> None:
        self.client, self.accepted = client, accepted
        opened = {one.group for key in accepted.keys.values() for one in key.opened}
        groups = accepted.plan.groups_of(client.name)
        shared = {
            name for group in groups if group.name not in opened for name in group.participants
        }
        others = [name for name in accepted.plan.participants if name in shared - {client.name}]
        self.names = tuple(others)
        self._secret, self._publics = SealingKey(), dict[str, bytes]()

    def announce(self) -> bytes:
        """Client, to its peers: the key that they seal to."""
        message = MaskKey(
            **self.accepted.plan.stage._asdict(),
            sender=self.client.name,
            plan=self.accepted.plan_id,
            body=self._secret.public,
        )
        return seal(message, self.client.key)

    def accept_key(self, blob: bytes, name: str) -> None:
        """Client: a peer's key for this attempt."""
        self._publics[name] = self._from(blob, MaskKey, name, PUBLIC_BYTES).body

    def _seal_to(self, name: str, content: bytes, *context: str) -> bytes:
        if name not in self._publics:
            raise ProtocolError("no sealing key of this peer", where=name)
        ends = (self.accepted.plan_id, self.client.name, name)
        return seal_to(self._publics[name], content, *context, *ends)

    def _open(self, message: MaskSeed | Hop, *context: str) -> bytes:
        if message.receiver != self.client.name:
            raise ProtocolError("sealed bytes are for another client", where=message.sender)
        ends = (self.accepted.plan_id, message.sender, message.receiver)
        return self._secret.open(message.body, *context, *ends)

    def _from(self, blob: bytes, expected: type[FromPeer], name: str, body_bytes: int) -> FromPeer:
        """A peer's message for this very plan, with that peer's own signature."""
        message = unseal(
            blob,
            expected,
            self.accepted.plan.stage,
            sender=name,
            verify_key=self.client.enrolment.verify_key(name),
            body_bytes=body_bytes,
        )
        if message.plan != self.accepted.plan_id:
            raise ProtocolError("message is of another plan", where=name)
        return message


class Masking(Peer):
    """A client's masks of one attempt, from the seed that it shares with each of its peers."""

    def __init__(self, client: Client, accepted: Accepted) -> None:
        super().__init__(client, accepted)
        order = accepted.plan.participants
        at = order.index(client.name)
        self.later = tuple(name for name in self.names if order.index(name) > at)
        self.earlier = tuple(name for name in self.names if order.index(name) < at)
        self._seeds = dict[str, bytes]()

    def send_seed(self, name: str) -> bytes:
        """Client, to a later peer: the pair's seed, drawn here and sealed to the peer."""
        seed = self._seeds[name] = os.urandom(SEED_BYTES)
        message = MaskSeed(
            **self.accepted.plan.stage._asdict(),
            sender=self.client.name,
            plan=self.accepted.plan_id,
            receiver=name,
            body=self._seal_to(name, seed, "mask seed"),
        )
        return seal(message, self.client.key)

    def accept_seed(self, blob: bytes, name: str) -> None:
        """Client: the seed of the pair with an earlier peer."""
        message = self._from(blob, MaskSeed, name, SEED_BYTES + OVERHEAD)
        self._seeds[name] = self._open(message, "mask seed")

    def masked(self, body: bytes, group: Group) -> bytes:
        """Client: its part of a group's sum with its mask on it; ProtocolError if a seed lacks."""
        ring = preset(self.accepted.plan.preset)
        mask = mask_sum(
            ring.prime,
            len(body) * 8 // ring.residue_bits,
            self._streams(self.later, group),
            self._streams(self.earlier, group),
        )
        alpha = group.among([self.client.name]).total
        return mask_body(ring, body, mask, alpha)

    def _streams(self, names: Iterable[str], group: Group) -> Iterable[RandomBytes]:
        for name in (name for name in names if name in group.participants):
            if name not in self._seeds:
                raise ProtocolError(
                    "no mask seed of this pair", where=f"{self.client.name}, {name}"
                )
            yield pair_stream(self._seeds[name], self.accepted.plan_id, group.name)
