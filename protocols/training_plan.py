"""From a target ε to one DP-SGD training per site and round: the plan of a federation.

The sites agree on ε, clip, rate and steps; each adds all of its noise itself, while it trains. So
nothing here depends on who else takes part, drops out or colludes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from protocols.accounting import check_target
from protocols.dp_sgd import DpSgd
from protocols.errors import PrivacyError
from protocols.plan import Plan
from protocols.release import RELEASED_BITS, TrainedOutput


@dataclass(frozen=True)
class TrainingPlan(Plan):
    """Noise and guarantees of all sites over all rounds; fields as of every plan."""

    mechanisms: Mapping[str, TrainedOutput]

    @classmethod
    def calibrate(
        cls,
        *,
        epsilon: float,
        delta: float,
        rounds: int,
        groups: Mapping[str, str],
        units: Mapping[str, int],
        parameters: Mapping[str, int],
        clip_norm: float,
        rate: float,
        steps: int,
        span: float,
        size: int,
        layers: str = "all",
        bits: int = RELEASED_BITS,
    ) -> TrainingPlan:
        """The plan with the least noise whose ε is at most `epsilon` at every site.

        groups, units, parameters: per site its group, its public number of units, and how many
        parameters it trains. clip_norm, rate, steps: as of `DpSgd`, alike at all sites; steps of
        one round. span: largest value sent, real units. size: released integers per round.
        layers: what the parameters are, for statements.
        Raises PrivacyError as `DpSgd.calibrate` does, naming the site, and where a site would
        have less than one unit in a step.
        """
        for site, count in units.items():
            with _named(site):
                check_target(epsilon, delta, count)
                _check_units(count, rate)
        mechanisms = {}
        for site in groups:
            with _named(site):
                training = DpSgd.calibrate(
                    epsilon=epsilon,
                    delta=delta,
                    rounds=rounds,
                    clip_norm=clip_norm,
                    rate=rate,
                    steps=steps,
                    size=parameters[site],
                    expected=rate * units[site],
                    layers=layers,
                )
            mechanisms[site] = TrainedOutput(size=size, bits=bits, training=training, span=span)
        return cls(mechanisms, dict(groups), rounds, delta)

    @property
    def colluders(self) -> None:
        """No other client's noise is counted on, so any number may collude."""
        return

    @property
    def dropouts(self) -> None:
        """No other client's noise is counted on, so any number may drop out."""
        return

    @property
    def adversary(self) -> str:
        """Against whom the figures hold, in one sentence."""
        return (
            f"everybody but the site itself, whoever colludes: the server, all key holders and "
            f"all other clients together, seeing every contribution of all {self.rounds} round(s)"
        )


@contextmanager
def _named(site: str) -> Iterator[None]:
    """A refusal names the site whose figures are at fault."""
    try:
        yield
    except PrivacyError as error:
        where = ", ".join(filter(None, (site, error.where)))
        raise PrivacyError(error.what, where=where, why=error.why, fix=error.fix) from None


def _check_units(units: int, rate: float) -> None:
    """At least one unit is to be expected in a step, or training would see noise alone."""
    if rate > 0 and units * rate < 1:
        raise PrivacyError(
            f"{units} unit(s) at a sampling rate of {rate:g}",
            why=f"a step would see {units * rate:.2g} of them on average",
            fix=f"set the rate to {_rounded_up(1 / units):g}, or leave the site out"
            if units > 1
            else "leave the site out, or join it with another",
        )


def _rounded_up(rate: float) -> float:
    """The next figure with two digits."""
    shown = float(f"{rate:.1e}")
    return min(shown if shown >= rate else float(f"{1.06 * rate:.1e}"), 1.0)
