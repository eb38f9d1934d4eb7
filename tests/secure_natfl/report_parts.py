"""Parts of invented reports: clients, scores, pictures, privacy, traffic.

Figures here are made up to be plausible; they come from no run.
"""

import base64
import io
import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
from PIL import Image

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
