"""Invented reports for the tests of the report's model and pages.

Figures here are made up to be plausible; they come from no run.
"""

import math
from typing import Any

from secure_natfl.report.model import Report
from secure_natfl.report.site_model import SiteReport
from tests.secure_natfl.report_parts import (
    ARMS,
    CENTRAL,
    DIGEST,
    SITES,
    aggregation,
    by_hospital,
    clients,
    curves,
    headline,
    losses,
    one_class_scores,
    picture,
    privacy,
    scores,
    wire,
)


def report_fields() -> dict[str, Any]:
    return {
        **headline(),
        "parts": {
            "natural-image supervision": True,
            "alignment to public statistics": True,
            "fine-grained β": True,
            "integer α": True,
            "downward weight w↓": True,
            "personalisation": True,
            "central distillation from numerator and denominator": False,
        },
        "aggregation": aggregation(),
        "aggregate_sha256": [DIGEST] * 16,
        "absent": [
            {"round": 3, "party": SITES[1][0], "why": "its connection ended"},
            {"round": 5, "party": f"{SITES[4][0]}.holder", "why": "it gave no answer"},
        ],
        "privacy": privacy(),
        "clients": clients(),
        "central": {
            "architecture": "resnet34",
            "heads": ["adult", "child"],
            "scores": by_hospital(0),
        },
        "baselines": {
            arm: {"label": a, "simulation_only": sim, "note": note, "scores": by_hospital(offset)}
            for arm, (a, sim, offset, note) in ARMS.items()
        },
        "curves": curves(),
        "losses": losses(),
        "wire": wire(),
        "seconds": {
            "total": 413.2,
            "protection": 7.94,
            "protection_per_client_round": 0.124,
            "by_stage": {
                "local training": 288.1,
                "public features": 61.9,
                "distillation": 38.4,
                "scoring": 15.1,
                "encryption": 5.2,
                "noise": 2.3,
                "ledger": 0.44,
            },
        },
        "peak_memory_mib": 1874.3,
        "exposure": [
            {
                "party": "Server",
                "learns": "Ciphertexts; the released weighted sum of each group",
                "protection": "CKKS under a key it never holds; noise in the sum",
                "remains": "ε per patient; who took part and when",
            },
            {
                "party": "Server with one site",
                "learns": "The sum without that site's own contribution",
                "protection": "Noise planned for t = 1",
                "remains": "The same ε",
            },
            {
                "party": "Server with the decryptor",
                "learns": "Each site's noisy contribution",
                "protection": "The site's own share of the noise only",
                "remains": "ε = 9.62",
            },
        ],
        "uncovered_releases": [
            {
                "what": "Test scores per hospital",
                "seen_by": "everybody with this report",
                "why": "the federation has to know whether it works",
            },
            {
                "what": "Number of patients and images",
                "seen_by": "everybody",
                "why": "weights α follow it",
            },
        ],
        "environment": {"python": "3.11.9", "torch": "2.14.0", "cpu": "2 cores, x86-64"},
        "proxy": {
            "name": "natural images",
            "images": 16_000,
            "asked_per_round": 2000,
            "classes": 10,
            "overlap_check": "no private image within the threshold",
        },
        "proxy_samples": [picture(seed) for seed in range(8)],
        "holdings": [
            {
                "site": name,
                "task": "main",
                "counted": "images",
                "counts": {"normal": images // 2, "pneumonia": images - images // 2},
            }
            for name, _, _, _, _, _, _, images, _, _ in SITES[:4]
        ],
    }


def sample_report(**changes: Any) -> Report:
    """A noised, encrypted run: eight sites of three hospitals in two groups."""
    return Report.model_validate({**report_fields(), **changes})


def plain_report() -> Report:
    """A seeded run without noise, encryption, curves or losses."""
    fields = report_fields()
    infinite = {"epsilon": float("inf"), "epsilon_isolated": float("inf")}
    quiet: dict[str, Any] = {
        "mechanism": "none",
        "crosscheck_epsilon": None,
        "signal_to_noise": None,
    }
    quiet |= {"parameters": {}, "not_covered": ["Everything that is sent."], "ledger": []}
    quiet["statement"] = "No noise was added: nothing is promised."
    groups = {"all": [row[0] for row in SITES]}
    fields["clients"] = [{**client, **infinite} for client in fields["clients"]]
    fields["privacy"] |= infinite | quiet
    fields["aggregation"] = {"kind": "plain", "custody": "none", "groups": groups}
    fields["aggregation"] |= {"holders": ["server"], "threshold": 1}
    fields["aggregation"] |= {"n_eff": {"all": 6.1}, "alpha": {row[0]: 1 for row in SITES}}
    empty: dict[str, Any] = {
        "curves": [],
        "losses": [],
        "proxy_samples": [],
        "absent": [],
        "uncovered_releases": [],
    }
    return Report.model_validate({**fields, **empty, "seeded": True, "name": "smoke"})


def one_class_report() -> Report:
    """One hospital whose test part holds one class: its AUROC does not exist."""
    fields = report_fields()
    for place in (fields["central"], *fields["baselines"].values()):
        place["scores"] = {**place["scores"], "hannover": one_class_scores()}
    fields["clients"] = [
        {**c, "scores": one_class_scores(), "one_class": True} if c["hospital"] == "hannover" else c
        for c in fields["clients"]
    ]
    fields["curves"] = [p for p in fields["curves"] if p["hospital"] != "hannover"]
    return Report.model_validate(fields)


def class_figures(name: str, skill: float) -> dict[str, Any]:
    rates = [i / 20 for i in range(21)]
    return {
        "class_name": name,
        "roc": [(x, x**skill) for x in rates],
        "true_positive": 61,
        "false_positive": 48,
        "true_negative": 271,
        "false_negative": 21,
        "reliability": [
            {"predicted": 0.05 + 0.1 * i, "observed": min(1, 0.03 + 0.094 * i), "n": 90 - 9 * i}
            for i in range(10)
        ],
    }


def sample_site(**changes: Any) -> SiteReport:
    """The site report of `nih-a`."""
    known = privacy()
    line = {"session": DIGEST, "mechanism": "shard-teachers", "rho": 0.0417, "sha256": DIGEST}
    arms = {"central": CENTRAL["nih"], "local_only": 0.704, "pooled": 0.783}
    fields = {
        **headline(),
        "client": clients()[0],
        "delta": known["delta"],
        "relation": known["relation"],
        "statement": known["statement"],
        "arms": {arm: scores(value) for arm, value in arms.items()},
        "curve": [
            {"arm": p["arm"], "round": p["round"], "auroc": p["auroc"]}
            for p in curves()
            if p["hospital"] == "nih"
        ],
        "classes": [class_figures("pneumonia", 0.38), class_figures("effusion", 0.3)],
        "ledger": known["ledger"][0],
        "ledger_lines": [
            {**line, "round": r, "spent_epsilon": 1.31 * math.sqrt(r + 1)} for r in range(8)
        ],
    }
    return SiteReport.model_validate({**fields, **changes})
