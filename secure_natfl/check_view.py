"""The preflight as a person reads it."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from secure_natfl.check import Check
from secure_natfl.report.formats import data_size, epsilon, number


def show(found: Check, console: Console) -> None:
    """Print parties, cost, promise and needs."""
    console.print(_sites(found))
    console.print(_groups(found))
    for line in _lines(found):
        console.print(line, soft_wrap=True, highlight=False)


def _sites(found: Check) -> Table:
    table = Table(title="Sites", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("site", "group", "network"):
        table.add_column(name, no_wrap=True)
    for name in ("units", "shards", "α", "ε", "alone", "before"):
        table.add_column(name, justify="right")
    for site in found.sites:
        table.add_row(
            site.name,
            site.group,
            site.architecture,
            f"{number(site.patients)} {site.unit}s" + (", one class" if site.one_class else ""),
            str(site.teachers),
            str(site.alpha),
            epsilon(site.epsilon),
            epsilon(site.epsilon_isolated),
            epsilon(site.spent_before),
        )
    return table


def _groups(found: Check) -> Table:
    table = Table(
        title="Groups (one aggregate and one head each)", title_justify="left", box=SIMPLE_HEAD
    )
    for name in ("group", "sites", "effective", "colluders", "signal : noise, at most"):
        table.add_column(name, justify="right" if name != "group" else "left")
    for group in found.groups:
        table.add_row(
            group.name,
            str(group.sites),
            f"{group.effective_contributors:.2f}",
            "any" if group.colluders is None else str(group.colluders),
            group.noise_predicted,
        )
    return table


def _lines(found: Check) -> list[str]:
    if found.epsilon == "inf":
        promise = "Promise: none. No noise is added, so ε = ∞."
    else:
        promise = (
            f"Promise after {found.rounds} rounds: ε = {epsilon(found.epsilon)} for the worst site "
            f"(δ = {found.delta:.3g}); ε = {epsilon(found.epsilon_isolated)} if everyone else "
            "colludes."
        )
    return [
        promise,
        f"Aggregation: {found.mode}; {found.threshold} of {found.key_holders} key holder(s) open. "
        f"A single contribution is read only if {found.hidden_unless}; one relies on "
        f"{found.relied_on}.",
        f"Wire: {data_size(found.upload_bytes)} up per site and round, "
        f"{found.upload_bytes / found.fp32_bytes:.2f} × the same numbers as fp32.",
        f"Proxies: {number(found.proxies_per_round)} asked per round, none twice; "
        f"{number(found.proxies_left_over)} left over."
        if found.proxies_per_round
        else "Proxies: none are asked.",
        f"Central model: {found.central}. Ledgers: {found.ledgers}.",
        f"Machine: about {number(found.memory_mib)} MiB of memory and {number(found.disk_mib)} MiB "
        f"of disk; {found.cores} cores here.",
        *found.notes,
    ]
