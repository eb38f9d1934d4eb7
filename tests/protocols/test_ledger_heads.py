import os
from pathlib import Path
from typing import Any

import pytest

from protocols.accounting import REPLACE_ONE, Event
from protocols.chain import SigningKey, canonical
from protocols.errors import LedgerError, ProtocolError
from protocols.ledger import Ledger, ReleaseKey
from protocols.ledger_heads import (
    Head,
    HeadBook,
    KeptHead,
    check_heads,
    parse_kept,
    sign_head,
    verify_kept,
)

EVENT = Event("shard-teachers", REPLACE_ONE, 0.1, 0.3, 0.0, 0.0, 0.0)
SITE, OTHER, *KEEPERS = (SigningKey.generate(os.urandom) for _ in range(5))
NAMES = {name: key.public for name, key in zip("bcd", KEEPERS, strict=True)}


def open_ledger(path: Path, site: str = "A") -> Ledger:
    return Ledger(path, site, "p", budget_epsilon=None, delta=1e-5)


def book(folder: Path, name: str = "b") -> HeadBook:
    key = KEEPERS["bcd".index(name)]
    return HeadBook(folder / f"{name}.heads", name, key, {"A": SITE.public})


def charge(ledger: Ledger, *rounds: int, session: str = "s") -> None:
    for number in rounds:
        ledger.charge(ReleaseKey(session, number), EVENT)


def checked(path: Path, kept: list[KeptHead]) -> int:
    with open_ledger(path) as ledger:
        return check_heads(ledger, kept, SITE.public, NAMES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def grown(path: Path, tmp_path: Path) -> tuple[list[KeptHead], list[bytes]]:
    """Heads kept by three clients over four charges; the ledger file as it was each time."""
    books, kept, copies = [book(tmp_path, name) for name in "bcd"], [], []
    for number in range(5):
        with open_ledger(path) as ledger:
            head = sign_head(ledger, SITE)
            assert head.seq == number
            kept += [each.keep(head) for each in books]
        copies.append(path.read_bytes())
        if number < 4:
            with open_ledger(path) as ledger:
                charge(ledger, number)
    return kept, copies


def test_an_honest_ledger_agrees_with_every_head(path: Path, tmp_path: Path) -> None:
    kept, _ = grown(path, tmp_path)
    assert checked(path, kept) == 15
    with open_ledger(path) as ledger:
        charge(ledger, 4, 5)
    assert checked(path, kept) == 15


@pytest.mark.parametrize("keeper", "bcd")
@pytest.mark.parametrize("back", [1, 2, 3, 4])
def test_an_old_copy_is_found_by_any_one_keeper(
    path: Path, tmp_path: Path, keeper: str, back: int
) -> None:
    kept, copies = grown(path, tmp_path)
    path.write_bytes(copies[4 - back])
    own = [copy for copy in kept if copy.keeper == keeper]
    with pytest.raises(LedgerError, match=f"has {4 - back} lines.*old copy"):
        checked(path, own)
    # Heads from before that copy show nothing.
    assert checked(path, [copy for copy in own if copy.head.seq <= 4 - back]) == 5 - back


@pytest.mark.parametrize("back", [1, 2, 3, 4])
def test_a_fork_is_found_however_long_it_grew(path: Path, tmp_path: Path, back: int) -> None:
    kept, copies = grown(path, tmp_path)
    path.write_bytes(copies[4 - back])
    with open_ledger(path) as ledger:
        charge(ledger, *range(10), session="other")
    with pytest.raises(LedgerError, match="another line"):
        checked(path, kept)


def test_a_new_file_of_another_site_or_relation_is_found(path: Path, tmp_path: Path) -> None:
    kept, _ = grown(path, tmp_path)
    path.unlink()
    empty = [copy for copy in kept if copy.head.seq == 0]
    assert checked(path, empty) == 3
    path.unlink()
    with Ledger(path, "A", "p", relation="other", budget_epsilon=None, delta=1e-5) as ledger:
        with pytest.raises(LedgerError, match="another line before number 1"):
            check_heads(ledger, empty, SITE.public, NAMES)
        with pytest.raises(LedgerError, match="has 0 lines, and had 4"):
            check_heads(ledger, [kept[-1]], SITE.public, NAMES)


def test_a_keeper_signs_nothing_that_goes_back_or_beside(path: Path, tmp_path: Path) -> None:
    keeper = book(tmp_path)
    with open_ledger(path) as ledger:
        charge(ledger, 0)
        first = sign_head(ledger, SITE)
        charge(ledger, 1)
        keeper.keep(sign_head(ledger, SITE))
    with pytest.raises(LedgerError, match="has 1 lines, and had 2"):
        keeper.keep(first)
    with open_ledger(tmp_path / "fork.db") as fork:
        charge(fork, 7, 8)
        with pytest.raises(LedgerError, match="two copies"):
            keeper.keep(sign_head(fork, SITE))
    assert len(keeper.kept) == 1


def test_heads_survive_the_keepers_restart(path: Path, tmp_path: Path) -> None:
    kept, _ = grown(path, tmp_path)
    again = book(tmp_path)
    assert list(again.kept) == [copy for copy in kept if copy.keeper == "b"]
    with open_ledger(path) as ledger:
        again.keep(sign_head(ledger, SITE))
    assert len(book(tmp_path).kept) == 5


def test_a_line_that_a_crash_cut_off_is_dropped(path: Path, tmp_path: Path) -> None:
    grown(path, tmp_path)
    file = tmp_path / "b.heads"
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    again = book(tmp_path)
    assert len(again.kept) == 4
    with open_ledger(path) as ledger:
        again.keep(sign_head(ledger, SITE))
    assert file.read_bytes() == whole


def test_a_damaged_book_is_refused(path: Path, tmp_path: Path) -> None:
    grown(path, tmp_path)
    (tmp_path / "b.heads").write_bytes(b"nonsense\n")
    with pytest.raises(LedgerError, match="kept heads cannot be used"):
        book(tmp_path)


def forged(kept: KeptHead, key: SigningKey | None = None, **changes: Any) -> KeptHead:
    """Another head, signed by `key` in the site's place, if given, and kept anew."""
    head = Head.model_validate(kept.head.model_dump() | changes)
    if key:
        head = head.model_copy(update={"signature": key.sign(head.said()).hex()})
    copy = kept.model_copy(update={"head": head})
    return copy.model_copy(update={"signature": KEEPERS[0].sign(copy.said()).hex()})


@pytest.mark.parametrize("changes", [{"seq": 9}, {"hash": "0" * 64}, {"patients": "q"}])
@pytest.mark.parametrize("key", [None, OTHER])
def test_only_the_sites_own_signature_counts(
    path: Path, tmp_path: Path, changes: dict[str, Any], key: SigningKey | None
) -> None:
    kept, _ = grown(path, tmp_path)
    false = forged(kept[0], key, **changes)
    with pytest.raises(ProtocolError, match="does not verify"):
        checked(path, [false])
    with pytest.raises(ProtocolError, match="does not verify"):
        book(tmp_path).keep(false.head)


def test_only_an_enrolled_keepers_own_signature_counts(path: Path, tmp_path: Path) -> None:
    kept, _ = grown(path, tmp_path)
    stranger = kept[0].model_copy(update={"keeper": "z"})
    with pytest.raises(ProtocolError, match="not enrolled"):
        checked(path, [stranger])
    swapped = kept[0].model_copy(update={"keeper": "c"})
    with pytest.raises(ProtocolError, match="does not verify"):
        checked(path, [swapped])
    moved = kept[0].model_copy(update={"head": kept[3].head})
    with pytest.raises(ProtocolError, match="does not verify"):
        checked(path, [moved])
    verify_kept(kept[0], {"A": SITE.public}, NAMES)


def test_heads_of_other_sites_are_refused(path: Path, tmp_path: Path) -> None:
    with open_ledger(path, site="B") as ledger:
        head = sign_head(ledger, SITE)
    with pytest.raises(ProtocolError, match="a ledger head of B"):
        book(tmp_path).keep(head)


def test_kept_heads_travel_as_canonical_bytes(path: Path, tmp_path: Path) -> None:
    kept, _ = grown(path, tmp_path)
    data = canonical(kept[7].model_dump())
    assert parse_kept(data) == kept[7]
    long = data[:-1] + b" " * 5000 + b"}"
    for wrong in (data + b" ", data[:-1], b"", b"[]", data.replace(b'"seq":2', b'"seq":-2'), long):
        with pytest.raises(ProtocolError, match="no kept ledger head"):
            parse_kept(wrong)
