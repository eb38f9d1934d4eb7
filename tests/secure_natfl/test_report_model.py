"""The report's records, and the invented reports that its other tests show.

Figures here are made up to be plausible; they come from no run.
"""

import base64
import io
import json
import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from secure_natfl.report.model import Interval, Report, Scores
from secure_natfl.report.site_model import SiteReport

DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
SITES = [  # name, hospital, group, architecture, parameters, unit, patients, images, α, AUROC
    ("nih-a", "nih", "adult", "resnet18", 11_181_642, "patient", 812, 1604, 4, 0.741),
    ("nih-b", "nih", "adult", "mobilenetv3_small_100", 1_529_968, "patient", 790, 1588, 4, 0.728),
    ("nih-c", "nih", "adult", "efficientnet_b0", 4_020_358, "patient", 402, 803, 2, 0.717),
    ("hannover-a", "hannover", "adult", "resnet18", 11_181_642, "patient", 188, 402, 2, 0.689),
    ("hannover-b", "hannover", "adult", "tiny_vit_5m_224", 5_072_388, "patient", 96, 204, 1, 0.671),
    ("guangzhou-a", "guangzhou", "child", "resnet18", 11_181_642, "image", 0, 1750, 1, 0.957),
    ("guangzhou-b", "guangzhou", "child", "convnext_atto", 3_373_240, "image", 0, 1711, 1, 0.949),
    ("guangzhou-c", "guangzhou", "child", "efficientnet_b0", 4_020_358, "image", 0, 860, 1, 0.951),
]
CENTRAL = {"nih": 0.752, "hannover": 0.694, "guangzhou": 0.961}
ARMS = {
    "local_only": (
        "Each site trains alone on its own images",
        False,
        -0.048,
        "No exchange at all.",
    ),
    "pooled": ("All images in one place", True, 0.031, "The upper bound that nobody may have."),
    "plain_mean": ("Plain mean of logits, as in FedMD", True, 0.006, "Neither noise nor weights."),
    "noise_proxies": ("Noise images in place of natural ones", True, -0.11, "A control."),
}


def figure(value: float, half: float = 0.028) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": min(1.0, value + half)}


def scores(auroc: float, unit: str = "patient", n: int = 412) -> dict[str, Any]:
    return {
        "auroc": figure(auroc, 0.62 / math.sqrt(n)),
        "auprc": figure(auroc - 0.21, 0.041),
        "balanced_accuracy": figure(auroc - 0.06, 0.03),
        "accuracy": figure(auroc - 0.03, 0.025),
        "ece": figure(0.07, 0.012),
        "n": n,
        "unit": unit,
    }


def one_class_scores(n: int = 96) -> dict[str, Any]:
    known = scores(0.7, n=n)
    return {**known, "auroc": None, "auprc": None, "balanced_accuracy": None}


def by_hospital(offset: float) -> dict[str, Any]:
    units = {"guangzhou": ("image", 620), "hannover": ("patient", 96), "nih": ("patient", 412)}
    return {name: scores(auroc + offset, *units[name]) for name, auroc in CENTRAL.items()}


def clients() -> list[dict[str, Any]]:
    names = [
        "name",
        "hospital",
        "group",
        "architecture",
        "parameters",
        "unit",
        "patients",
        "train_images",
        "alpha",
    ]
    return [
        {
            **dict(zip(names, row[:9], strict=True)),
            "test_images": row[7] // 4,
            "one_class": False,
            "epsilon": round(4.0 * row[8] / 4, 3),
            "epsilon_isolated": round(9.62 * row[8] / 4, 3),
            "scores": scores(row[9], row[5], row[7] // 4),
        }
        for row in SITES
    ]


def picture(seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def headline() -> dict[str, Any]:
    return {
        "product_version": "0.1.0",
        "created_utc": datetime(2026, 11, 21, 13, 5, tzinfo=UTC),
        "name": "xray-hospitals",
        "command": "natfl run xray-hospitals --set data.root=images --set rounds=8 --out runs/1",
        "config_sha256": DIGEST,
        "simulated": True,
        "seeded": False,
        "not_private_because": [],
        "system": "natimg-fl",
        "reconstruction": "A reconstruction of NatIMG-FL from its published abstract; the authors' "
        "own figures are not claimed.",
    }


def privacy() -> dict[str, Any]:
    ledger = [
        {
            "site": row[0],
            "lines": 8,
            "spent_epsilon": round(4.0 * row[8] / 4, 3),
            "spans": "1 run since 2026-11-21",
            "head_sha256": DIGEST,
        }
        for row in SITES
    ]
    return {
        "mechanism": "shard-teachers",
        "epsilon": 4.0,
        "epsilon_isolated": 9.62,
        "delta": 1e-5,
        "unit": "patient",
        "relation": "replace one",
        "t": 1,
        "d": 0,
        "rounds": 8,
        "adversary": "honest-but-curious server with one colluding site; sees every released "
        "aggregate and all ciphertexts",
        "statement": "Replacing all images of one patient changes the probability of anything that "
        "is released over 8 rounds by at most a factor e^4.00, except with probability 1e-5, "
        "provided that at most one other site colludes and none drops out.",
        "accountant": "zCDP of the discrete Gaussian, converted by dp-accounting 0.6 (RDP)",
        "crosscheck_epsilon": 3.71,
        "parameters": {"shards": 24, "clip_norm": 8.0, "clip_int": 1024, "sigma_share": 1893.4},
        "signal_to_noise": 0.173,
        "randomness": "operating system",
        "not_covered": [
            "Test scores per hospital in this report are computed on private test images "
            "without noise.",
            "That a site took part, how many images it has and when it answered.",
            "What a site's own staff can see at the site.",
        ],
        "ledger": ledger,
    }


def aggregation() -> dict[str, Any]:
    return {
        "kind": "ckks",
        "custody": "threshold",
        "holders": [f"{row[0]}.holder" for row in SITES],
        "threshold": 6,
        "alpha": {row[0]: row[8] for row in SITES},
        "n_eff": {"adult": 4.122, "child": 3.0},
        "groups": {"adult": [r[0] for r in SITES[:5]], "child": [r[0] for r in SITES[5:]]},
        "preset": "mk18-39",
        "poly_modulus_degree": 2048,
        "coeff_mod_bits": [20, 19],
        "scale": 64_000,
        "security_bits_table": "128-bit table: limit 54, used 39",
        "implementation": "protocols.multikey_ckks",
    }


def curves() -> list[dict[str, Any]]:
    offsets = {"central": 0.0, "personalised": -0.02, "local_only": -0.048, "pooled": 0.031}
    return [
        {"arm": arm, "hospital": hospital, "round": r, "auroc": top + off - 0.19 * 0.62**r}
        for arm, off in offsets.items()
        for hospital, top in CENTRAL.items()
        for r in range(9)
    ]


def losses() -> list[dict[str, Any]]:
    models = ["central", *(row[0] for row in SITES)]
    return [
        {"model": m, "step": 10 * s, "loss": (0.7 + 0.05 * i) * 0.985**s + 0.2}
        for i, m in enumerate(models)
        for s in range(100)
    ]


def wire() -> dict[str, Any]:
    return {
        "upload_bytes": 131_402,
        "fp32_bytes": 112_000,
        "download_bytes": 114_310,
        "opening_bytes": 65_570,
        "model_fp32_bytes": {row[3]: 4 * row[4] for row in SITES},
        "by_message": {
            "plan": {"count": 8, "bytes": 18_400},
            "contribution": {"count": 64, "bytes": 8_409_728},
            "opening request": {"count": 16, "bytes": 1_049_120},
            "aggregate": {"count": 16, "bytes": 1_828_960},
        },
    }


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


def test_json_keeps_the_names_that_others_read() -> None:
    read = json.loads(sample_report().model_dump_json(indent=2))
    assert read["system"] == "natimg-fl"
    assert read["simulated"] is True
    assert read["aggregation"]["kind"] == "ckks"
    assert read["aggregation"]["custody"] == "threshold"
    assert read["aggregate_sha256"] == [DIGEST] * 16
    wanted = {"epsilon", "epsilon_isolated", "delta", "unit", "relation", "mechanism", "t", "d"}
    assert wanted <= read["privacy"].keys()
    assert {"name", "architecture", "unit", "scores"} <= read["clients"][0].keys()
    assert set(read["central"]["scores"]) == {"nih", "hannover", "guangzhou"}
    assert set(read["baselines"]) == {"local_only", "pooled", "plain_mean", "noise_proxies"}
    assert read["wire"]["fp32_bytes"] == 112_000
    assert {"total", "protection"} <= read["seconds"].keys()


@pytest.mark.parametrize("make", [sample_report, plain_report, one_class_report])
def test_json_reads_back_as_the_same_report(make: Any) -> None:
    report = make()
    assert Report.model_validate_json(report.model_dump_json(indent=2)) == report


def test_site_json_reads_back_as_the_same_report() -> None:
    site = sample_site()
    assert SiteReport.model_validate_json(site.model_dump_json(indent=2)) == site


def test_infinite_epsilon_is_the_string_inf() -> None:
    read = json.loads(plain_report().model_dump_json())
    assert read["privacy"]["epsilon"] == "inf"
    assert read["clients"][0]["epsilon_isolated"] == "inf"


@pytest.mark.parametrize("epsilon", [float("nan"), -0.1, float("-inf"), "infinite", None])
def test_what_is_no_epsilon_is_refused(epsilon: Any) -> None:
    with pytest.raises(ValidationError):
        sample_report(privacy={**privacy(), "epsilon": epsilon})


def test_not_a_number_is_refused_and_none_stands_for_undefined() -> None:
    with pytest.raises(ValidationError):
        Interval(value=float("nan"), low=0.0, high=1.0)
    assert Scores.model_validate(one_class_scores()).auroc is None


def test_unknown_fields_and_changes_are_refused() -> None:
    with pytest.raises(ValidationError, match="patient_ids"):
        sample_report(patient_ids=["p1"])
    report = sample_report()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(report, "simulated", False)  # noqa: B010 (a type checker refuses it outright)


@pytest.mark.parametrize(
    "sample",
    ["https://example.org/a.png", 'data:image/png;base64,AA" onload="x', "data:text/html,x"],
)
def test_only_embedded_png_images_are_taken(sample: str) -> None:
    with pytest.raises(ValidationError):
        sample_report(proxy_samples=[sample])
