"""What one site reports to itself: the frozen records behind `sites/<name>/report.html`.

The run fills a `SiteReport` for each site and hands it to `render.write_site_report`. It holds
figures that the consortium's report must not (confusion counts, ROC points, every ledger line) but
no image and no patient identifier either.
"""

from pydantic import FiniteFloat

from protocols.statement import PrivacyStatement
from secure_natfl.report.model import (
    Budget,
    Client,
    Count,
    Epsilon,
    Headline,
    Record,
    Scores,
    Sha256,
    SiteLedger,
)


class LedgerLine(Record):
    """One charge in a site's ledger; `sha256` chains it to the line before.

    cost: what it paid for, in words; `rho` is 0 where steps were paid for.
    """

    session: str
    round: Count
    mechanism: str
    rho: Epsilon
    cost: str = ""
    spent_epsilon: Epsilon
    sha256: Sha256


class SiteCurvePoint(Record):
    """AUROC on the site's own test part after a round."""

    arm: str
    round: Count
    auroc: FiniteFloat | None


class ReliabilityBin(Record):
    """Mean predicted probability against observed frequency, both in [0, 1], over `n` cases."""

    predicted: FiniteFloat
    observed: FiniteFloat
    n: Count


class ClassFigures(Record):
    """One class on the site's test part: ROC points (FPR, TPR), confusion at 0.5, reliability."""

    class_name: str
    roc: tuple[tuple[FiniteFloat, FiniteFloat], ...]
    true_positive: Count
    false_positive: Count
    true_negative: Count
    false_negative: Count
    reliability: tuple[ReliabilityBin, ...]


class SiteReport(Headline):
    """One site's own report: figures that only this site may see, kept at the site.

    `arms` compares models on this site's test part, by the keys of the consortium's baselines
    and "central".
    """

    client: Client
    delta: FiniteFloat
    relation: str
    statement: str
    guarantee: PrivacyStatement | None = None
    """What `statement` says, figure by figure."""
    budgets: tuple[Budget, ...] = ()
    """What the whole ledger holds: per patient set, each session and all of them."""
    arms: dict[str, Scores]
    curve: tuple[SiteCurvePoint, ...]
    classes: tuple[ClassFigures, ...]
    ledger: SiteLedger
    ledger_lines: tuple[LedgerLine, ...]
