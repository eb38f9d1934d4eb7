"""How figures are spelt in every report; the templates use these as filters."""

from collections.abc import Sequence
from datetime import UTC, datetime

from secure_natfl.report.model import Interval, Scores

NOT_DEFINED = "n/a"

METRICS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "ece": "ECE",
    "dice": "Dice",
}
"""Fields of `Scores` and the headings of their columns."""


def metrics_shown(scores: Sequence[Scores]) -> list[str]:
    """The fields of `Scores` that a table of these has columns for.

    Masks have Dice alone; accuracy stands where some score has it, the others always.
    """
    masks = [one.dice is not None for one in scores]
    if masks and all(masks):
        return ["dice"]
    further = {
        "accuracy": any(one.accuracy is not None for one in scores),
        "dice": any(masks),
    }
    return [metric for metric in METRICS if further.get(metric, True)]


def metric_columns(metrics: Sequence[str]) -> list[str]:
    """The headings of these columns, marked as numbers."""
    return [f"#{METRICS[metric]}" for metric in metrics]


def epsilon(value: float | str | None) -> str:
    """A privacy loss with three significant digits; "∞" where nothing bounds it."""
    if value is None:
        return NOT_DEFINED
    if value == "inf":
        return "∞"
    return f"{float(value):.2f}" if float(value) < 100 else f"{float(value):.0f}"


def score(interval: Interval | None) -> str:
    """The point estimate to three places; "n/a" where it is not defined."""
    return NOT_DEFINED if interval is None else f"{interval.value:.3f}"


def bounds(interval: Interval | None) -> str:
    """The bootstrap interval, to stand after `score`."""
    return "" if interval is None else f"{interval.low:.3f}–{interval.high:.3f}"


def number(value: float) -> str:
    """Whole numbers with thin spaces between thousands, others with four significant digits."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:,.1f}".replace(",", "\u202f") if abs(value) >= 1000 else f"{value:.4g}"


def data_size(count: float) -> str:
    """Bytes in decimal units with three significant digits, such as "108 kB"."""
    size, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 999.5 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.0f} B" if unit == "B" else f"{_three_digits(size)} {unit}"


def duration(seconds: float) -> str:
    """Seconds in the unit a person would choose: ms, s, or min and s."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 99.95:
        return f"{_three_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def ratio(part: float, whole: float) -> str:
    """How many times `whole` fits: "0.96 ×", or "1/310 of" where that reads better."""
    if part <= 0 or whole <= 0:
        return NOT_DEFINED
    quotient = part / whole
    return f"1/{number(round(1 / quotient))}" if quotient < 0.1 else f"{_three_digits(quotient)} ×"


def percent(part: float, whole: float) -> str:
    """A share in per cent, one decimal place below ten."""
    if whole <= 0:
        return NOT_DEFINED
    share = 100 * part / whole
    return f"{share:.1f} %" if share < 10 else f"{share:.0f} %"


def moment(value: datetime) -> str:
    """A date and time in UTC, to the minute."""
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    return f"{aware.astimezone(UTC):%d %B %Y, %H:%M} UTC".lstrip("0")


def signed(value: float) -> str:
    """A difference with three decimals and its sign, a minus as in print."""
    return f"{value:+.3f}".replace("-", "−")


def power(value: float) -> str:
    """A small probability such as δ, in the form 1e-5."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def plural(count: int, noun: str) -> str:
    """`3 sites`, `1 site`."""
    return f"{number(count)} {noun if count == 1 else noun + 's'}"


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


FILTERS = {
    "epsilon": epsilon,
    "score": score,
    "bounds": bounds,
    "number": number,
    "data_size": data_size,
    "duration": duration,
    "moment": moment,
    "power": power,
    "signed": signed,
}
