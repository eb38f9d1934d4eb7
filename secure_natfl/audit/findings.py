"""What an audit found: one line per check, and the exit code they add up to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from protocols.errors import NatflError

Outcome = Literal["holds", "broken", "unchecked"]


@dataclass(frozen=True)
class Finding:
    """One check. said: what was compared and how much of it, or what is wrong."""

    check: str
    outcome: Outcome
    said: str


class BrokenError(NatflError):
    """A promise is broken, or something that was signed or recorded is not what it was."""


@dataclass
class Findings:
    """The checks of one audit, in their order."""

    found: list[Finding] = field(default_factory=list)

    def check(self, name: str, step: Callable[[], str]) -> None:
        """Run a check that says in a sentence what holds.

        Whatever it meets that is refused, missing or malformed is a broken check, with the reason.
        """
        try:
            self.found.append(Finding(name, "holds", step()))
        except NatflError as error:
            self.found.append(Finding(name, "broken", str(error)))
        except OSError as error:
            said = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            self.found.append(Finding(name, "broken", said))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            said = f"malformed ({type(error).__name__}): {' '.join(str(error).split())[:300]}"
            self.found.append(Finding(name, "broken", said))

    def unchecked(self, name: str, why: str) -> None:
        """Say that a check was not made, and why; it neither holds nor is broken."""
        self.found.append(Finding(name, "unchecked", why))

    @property
    def broken(self) -> tuple[Finding, ...]:
        """The checks that do not hold."""
        return tuple(one for one in self.found if one.outcome == "broken")


def demand(holds: bool, what: str, *, where: str = "", why: str = "") -> None:
    """Return if a promise holds; BrokenError otherwise."""
    if not holds:
        raise BrokenError(what, where=where, why=why)
