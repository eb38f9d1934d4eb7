"""Updates that are sent thin, and what a site could not say kept for its next one, as FedMIC does.

The arithmetic and its sources stand in `low_rank`; here is what goes on from phase to phase and
from round to round. "power_secure" says an update in two sums, M·Q of every layer and then Mᵀ·P̂
for the basis P̂ of the first sum, and adds to M what the site could not say before (error
feedback). "svd_plain" cuts singular values at every site anew; "off" sends all weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ConfigError
from protocols.quantize import Layout, Segment
from secure_natfl.methods.low_rank import (
    Matrix,
    RankRule,
    SharedBasis,
    energy_at,
    orthonormal,
    rank_by_aic,
    rank_by_energy,
    reduced,
)
from secure_natfl.system_tables import FedMic

Matrices = Mapping[str, Matrix]
Vector = NDArray[np.float64]

LEFT: Final = "left"
RIGHT: Final = "right"
WHOLE: Final = "update"
MEMORY: Final = "memory"


class Compression:
    """The form in which updates travel, and the matrices that it needs later.

    kept: those matrices, by a path of names: bases of a group, "left/GROUP/layer" and
    "right/GROUP/layer"; of a place, as "site/NAME" is one, "PLACE/update/layer" of this round and
    "PLACE/memory/layer", what it could not say yet. shapes: weight → shape, of all that is sent.
    """

    def __init__(self, options: FedMic, shapes: Mapping[str, Sequence[int]]) -> None:
        self.options = options
        self.basis = SharedBasis.of(shapes, options.rank)
        self.kept: dict[str, Matrix] = {}
        self._numbers = {"up": 0, "down": 0}
        if self.summable and not self.basis.factored:
            raise ConfigError(
                f"no layer that is sent is shorter at rank {options.rank}",
                where="system.rank",
                fix='lower it, send more layers, or set system.compression = "off"',
            )

    @property
    def summable(self) -> bool:
        """Whether sums of what single sites send say all that the server needs."""
        return self.options.compression == "power_secure"

    @property
    def layouts(self) -> dict[str, Layout]:
        """Phase → its vector: two of thin matrices; of the other forms one, of all weights."""
        first, second = self.basis.left_layout, self.basis.right_layout
        if self.summable and second is not None:
            return {LEFT: first, RIGHT: second}
        shapes = self.basis.shapes
        return {WHOLE: Layout(tuple(Segment(s.name, s.rows, s.columns) for s in shapes))}

    def numbers(self, weights: int) -> tuple[int, int]:
        """Numbers that a site sends and receives in a round; weights: as many as there are."""
        if self.summable:
            return self.basis.numbers, self.basis.numbers
        return self._numbers["up"] or weights, self._numbers["down"] or weights

    def start(self, group: str, generator: np.random.Generator) -> None:
        """Draw the first basis Q of a group: public, from the run's seeds."""
        self.keep(self.basis.drawn(generator), RIGHT, group)

    # At a site.

    def first(self, place: str, group: str, update: Matrices, round_number: int) -> Vector:
        """M·Q [m, r] of every layer, M being `update` and what `place` could not say before.

        Of the other forms `update` itself, at ranks of its own where it is "svd_plain".
        """
        if self.summable:
            memory = self.at(place, MEMORY)
            update = {name: m + memory.get(name, 0.0) for name, m in update.items()}
            self.keep(update, place, WHOLE)
            return self.layouts[LEFT].pack(self.basis.left_sums(update, self.at(RIGHT, group)))
        if self.options.compression == "svd_plain":
            update, self._numbers["up"] = reduced(update, self._rule(round_number))
        return self.layouts[WHOLE].pack(update)

    def second(self, place: str, group: str) -> Vector:
        """Mᵀ·P̂ [n, r] of every layer; what P̂ cannot carry of M becomes the memory."""
        update, left = self.at(place, WHOLE), self.at(LEFT, group)
        self.keep(self.basis.unsaid(update, left), place, MEMORY)
        return self.layouts[RIGHT].pack(self.basis.right_sums(update, left))

    # At the server.

    def opened(self, group: str, mean: Vector, phase: str, round_number: int) -> Matrices:
        """What a mean says of the group's update, layer → matrix; the first gives the basis P̂."""
        found: dict[str, Matrix] = self.layouts[phase].unpack(mean)
        if phase == LEFT:
            thin = {s.name: orthonormal(found.pop(s.name)) for s in self.basis.factored}
            self.keep(thin, LEFT, group)
        elif phase == RIGHT:
            self.keep({name: orthonormal(m) for name, m in found.items()}, RIGHT, group)
            found = self.basis.rebuilt(self.at(LEFT, group), found)
        elif self.options.compression == "svd_plain":
            found, self._numbers["down"] = reduced(found, self._rule(round_number))
        return found

    def unopened(self, group: str) -> None:
        """A group whose first sum is missing has a basis of zeros: nothing is said, all is kept."""
        zero = {s.name: np.zeros((s.rows, s.rank)) for s in self.basis.factored}
        self.keep(zero, LEFT, group)

    # What is kept.

    def keep(self, matrices: Matrices, *path: str) -> None:
        """Keep matrices under a path of names."""
        self.kept |= {"/".join((*path, name)): matrix for name, matrix in matrices.items()}

    def at(self, *path: str) -> dict[str, Matrix]:
        """The matrices under a path of names."""
        start = "/".join((*path, ""))
        return {n.removeprefix(start): m for n, m in self.kept.items() if n.startswith(start)}

    def _rule(self, round_number: int) -> RankRule:
        """How many singular values a client, and the server, keep in a round."""
        if self.options.rank_rule == "aic":
            return rank_by_aic
        ends = self.options.energy_start, self.options.energy_end
        return rank_by_energy(energy_at(round_number, self.options.rounds, *ends))
