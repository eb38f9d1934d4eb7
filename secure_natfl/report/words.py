"""The plain sentences that open a report: what left the sites, what ε is, what does not hold."""

from dataclasses import dataclass

from protocols.promises import PROMISES
from secure_natfl.report import formats
from secure_natfl.report.model import Client, Epsilon, Headline, Report, Scores, SiteLedger

ARM_LABELS = {
    "central": "Central model",
    "personalised": "Personalised",
    "local_only": "Local only",
    "plain_mean": "Plain mean",
    "noise_proxies": "Noise images",
    "in_domain_proxies": "Own X-rays",
    "fitted": "Fitted to few labels",
    "few_labels": "The few labels alone",
    "pooled": "Pooled data",
}
"""Short names for figures, in the order in which reports list the arms."""


@dataclass(frozen=True)
class Tile:
    """One key figure of the summary with the sentence that makes it readable."""

    label: str
    value: str
    note: str


def arm_label(arm: str) -> str:
    """The short name of an arm; an unknown one is spelt as it is."""
    return ARM_LABELS.get(arm, arm)


def in_arm_order(arms: list[str]) -> list[str]:
    """Known arms in the reports' order, then the others by name."""
    order = list(ARM_LABELS)
    return sorted(arms, key=lambda arm: (order.index(arm) if arm in order else len(order), arm))


def why_not_private(headline: Headline, epsilon: Epsilon) -> tuple[str, ...]:
    """The reasons for the "NOT PRIVATE" banner; empty when none applies.

    A seeded run and an infinite ε always give one, even where the run named none.
    """
    if headline.not_private_because:
        return headline.not_private_because
    reasons = []
    if epsilon == "inf":
        reasons.append("no noise was added, so no ε bounds what the released figures reveal")
    elif headline.seeded:
        reasons.append("the randomness was seeded: whoever knows the seed can take the noise away")
    return tuple(reasons)


def what_left(report: Report) -> str:
    """The sentence on what stays and what leaves."""
    aggregation = report.aggregation
    noise = "without noise" if report.privacy.epsilon == "inf" else "clipped, covered by noise"
    if report.privacy.t is None:
        noise = "given by models trained under noise"
        if report.leaves:
            noise = "computed from models trained under noise"
    opened = _opened(aggregation.kind, aggregation.custody)
    return (
        f"A hospital's images stay with it. What leaves in each round is {_said(report)}, {noise}, "
        f"and {opened}."
    )


def _said(report: Report) -> str:
    if report.leaves or report.proxy is None:
        return report.leaves
    asked = formats.number(report.proxy.asked_per_round)
    return f"its models' answers (logits) to {asked} public natural images"


def hospitals(report: Report) -> list[str]:
    """The hospitals of a run, in the order of its sites."""
    return list(dict.fromkeys(client.hospital for client in report.clients))


def what_epsilon(report: Report) -> str:
    """The sentence on ε, its condition, and what is left when every other site colludes."""
    privacy = report.privacy
    if privacy.epsilon == "inf":
        return (
            f"Nothing bounds what the released aggregates reveal about one {privacy.unit}: ε = ∞."
        )
    verb = "would tell" if report.seeded else "tell"
    if privacy.t is None:
        return (
            f"Whoever colludes, all contributions of all {formats.plural(privacy.rounds, 'round')} "
            f"together {verb} an adversary no more about one {privacy.unit} than "
            f"{_loss(privacy.epsilon)} allows ({_delta(privacy.delta)}, {privacy.relation}): "
            f"the noise is in each site's own training."
        )
    return (
        f"With {formats.plural(privacy.t, 'other site')} colluding and {privacy.d or 'none'} "
        f"dropping out, the aggregates of all {formats.plural(privacy.rounds, 'round')} together "
        f"{verb} an adversary no more about one {privacy.unit} than {_loss(privacy.epsilon)} "
        f"allows ({_delta(privacy.delta)}, {privacy.relation}). With everyone else colluding, only "
        f"a site's own noise is left: {_loss(privacy.epsilon_isolated)}."
    )


def what_this_site_spent(
    client: Client, ledger: SiteLedger, delta: float, unit: str | None = None
) -> str:
    """The sentence on one site's own privacy loss, in this run and over all runs.

    unit: whom the guarantee is for, where it is not the client's own unit of data.
    """
    unit = unit or client.unit
    if client.epsilon == "inf":
        return f"Nothing bounds what this run's releases reveal about one {unit}: ε = ∞."
    whom = "all that is" if unit == "client" else f"one {unit}"
    return (
        f"This run reveals about {whom} of {client.name} at most "
        f"{_loss(client.epsilon)} ({_delta(delta)}); with everyone else colluding, "
        f"{_loss(client.epsilon_isolated)}. Over all runs the ledger has charged "
        f"{_loss(ledger.spent_epsilon)}."
    )


def image_unit_sites(clients: tuple[Client, ...]) -> tuple[str, ...]:
    """Sites that know no patients, whose guarantee is per image."""
    return tuple(client.name for client in clients if client.unit == "image")


def tiles(report: Report) -> list[Tile]:
    """The key figures, most important first."""
    return [_auroc_tile(report), _epsilon_tile(report), _bytes_tile(report), _time_tile(report)]


def _loss(epsilon: Epsilon) -> str:
    return f"ε\u00a0=\u00a0{formats.epsilon(epsilon)}"


def _delta(delta: float) -> str:
    return f"δ\u00a0=\u00a0{formats.power(delta)}"


def _opened(kind: str, custody: str) -> str:
    by_mode = {str(mode): promise.opened for mode, promise in PROMISES.items()}
    return by_mode.get(f"{kind}/{custody}", f"aggregated by {kind} with the key held by {custody}")


def _auroc_tile(report: Report) -> Tile:
    label = "AUROC, weakest hospital"
    if report.central is None or any(client.scores.dice for client in report.clients):
        return _personal_tile(report)
    known = {name: s for name, s in report.central.scores.items() if s.auroc is not None}
    if not known:
        return Tile(label, formats.NOT_DEFINED, "No hospital's test part holds two classes.")
    name = min(known, key=lambda hospital: _auroc(known[hospital]))
    local = report.baselines.get("local_only")
    alone = local.scores.get(name) if local else None
    beside = f"local only {_with_bounds(alone)}" if alone else "local only was not run"
    note = f"Central model at {name} ({formats.bounds(known[name].auroc)}); {beside}."
    undefined = [hospital for hospital in report.central.scores if hospital not in known]
    note += f" Not defined at {', '.join(undefined)}." if undefined else ""
    return Tile(label, formats.score(known[name].auroc), note)


def _personal_tile(report: Report) -> Tile:
    """Of runs without a shared model, or of masks: the weakest site's own model."""
    for field in ("auroc", "dice", "accuracy"):
        found = {c.name: getattr(c.scores, field) for c in report.clients}
        known = {name: interval for name, interval in found.items() if interval is not None}
        if known:
            name = min(known, key=lambda site: known[site].value)
            label = f"{formats.METRICS[field]}, weakest site"
            note = f"Personalised model of {name} ({formats.bounds(known[name])})."
            return Tile(label, formats.score(known[name]), note)
    return Tile("AUROC, weakest site", formats.NOT_DEFINED, "No test part holds two classes.")


def _with_bounds(scores: Scores) -> str:
    bounds = formats.bounds(scores.auroc)
    return formats.score(scores.auroc) + (f" ({bounds})" if bounds else "")


def _auroc(scores: Scores) -> float:
    return scores.auroc.value if scores.auroc else 1.0


def _epsilon_tile(report: Report) -> Tile:
    privacy = report.privacy
    isolated = formats.epsilon(privacy.epsilon_isolated)
    note = f"Worst site, per {privacy.unit}, {formats.plural(privacy.rounds, 'round')}, "
    if privacy.t is None:
        note += "whoever colludes."
    else:
        note += f"t = {privacy.t}; {isolated} with everyone else colluding."
    if privacy.epsilon == "inf":
        note = f"Nothing bounds what the releases reveal about one {privacy.unit}."
    elif why_not_private(report, privacy.epsilon):
        note = "Does not hold in this run: see the warning above."
    return Tile(f"ε at δ = {formats.power(privacy.delta)}", formats.epsilon(privacy.epsilon), note)


def _bytes_tile(report: Report) -> Tile:
    wire = report.wire
    same = "numbers" if report.leaves else "logits"
    note = f"{formats.ratio(wire.upload_bytes, wire.fp32_bytes)} the same {same} as fp32"
    sizes = wire.model_fp32_bytes.values()
    if sizes and min(sizes) > 0:
        low = formats.ratio(wire.upload_bytes, min(sizes))
        high = formats.ratio(wire.upload_bytes, max(sizes))
        note += f"; {low} to {high} of sending the model" if low != high else f"; {low} of a model"
    return Tile("Upload per site and round", formats.data_size(wire.upload_bytes), f"{note}.")


def _time_tile(report: Report) -> Tile:
    seconds, memory = report.seconds, formats.number(round(report.peak_memory_mib))
    return Tile(
        "Time spent on protection",
        formats.percent(seconds.protection, seconds.total),
        f"{formats.duration(seconds.protection_per_client_round)} per site and round; the run "
        f"took {formats.duration(seconds.total)} and {memory} MiB.",
    )
