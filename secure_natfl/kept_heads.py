"""Each site's ledger head, signed after every round and kept by the other sites of its group.

A site that puts back an old copy of its ledger could spend a budget twice; the hash chain of a
file does not show that lines at its end are missing. The others' copies do, at the next run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from protocols.chain import SigningKey
from protocols.ledger import Ledger
from protocols.ledger_heads import HeadBook, check_heads, sign_head


class KeptHeads:
    """The books of all sites, `folder`/<site>/heads.jsonl each; a simulation has them side by side.

    groups: the sites of each group. keys: site → its signing key; ledgers: site → its ledger.
    """

    def __init__(
        self,
        folder: Path,
        groups: Iterable[Sequence[str]],
        keys: Mapping[str, SigningKey],
        ledgers: Mapping[str, Ledger],
    ) -> None:
        self._groups, self._keys, self._ledgers = list(groups), keys, ledgers
        public = {site: key.public for site, key in keys.items()}
        self._books = {
            site: HeadBook(folder / site / "heads.jsonl", site, key, public)
            for site, key in keys.items()
        }

    def check(self) -> int:
        """Before anything is spent: every ledger against the others' copies; how many there were.

        LedgerError names the keeper whose copy shows that a ledger was rolled back or forked.
        """
        count = 0
        for site, keeper in self._pairs():
            kept = self._books[keeper].of(site)
            keepers = {keeper: self._keys[keeper].public}
            count += check_heads(self._ledgers[site], kept, self._keys[site].public, keepers)
        return count

    def keep(self) -> None:
        """After a round: every site signs where its ledger stands, and the others keep it."""
        heads = {
            site: sign_head(ledger, self._keys[site]) for site, ledger in self._ledgers.items()
        }
        for site, keeper in self._pairs():
            self._books[keeper].keep(heads[site])

    def _pairs(self) -> Iterator[tuple[str, str]]:
        """(site, keeper) for every two sites of a group."""
        for sites in self._groups:
            yield from ((site, keeper) for site in sites for keeper in sites if site != keeper)
