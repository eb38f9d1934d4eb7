"""What a run cost, as its report states it: bytes, seconds, memory, and where it ran."""

from __future__ import annotations

import base64
import io
import os
import platform
import resource
import time
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version

from PIL import Image

from protocols.messages import Opening
from protocols.policy import holder_name
from protocols.transcript import Entry
from secure_natfl.config import Config
from secure_natfl.report.model import MessageTotal, Timing, Wire
from secure_natfl.results import Played, Results

_SAMPLES = 12
_LIBRARIES = ("torch", "timm", "tenseal", "opacus", "numpy", "dp-accounting", "cryptography")
_CLIENT_STEPS = (
    "quantise and clip",
    "charge, noise and store",
    "quantise and store",
    "encrypt and sign",
)


def wire(config: Config, results: Results) -> Wire:
    """Bytes of one client and round, and of all messages by kind."""
    logits = 4 * config.proxies.per_round * len(results.federation.task.classes)
    opening = results.messages.get(Opening.kind)
    return Wire(
        upload_bytes=max(r["upload_bytes"] for r in results.rounds),
        fp32_bytes=logits,
        # The central model's answers come back as fp32 logits.
        download_bytes=max(r["download_bytes"] for r in results.rounds) + logits,
        opening_bytes=opening.largest if opening else 0,
        model_fp32_bytes={
            name: 4 * network.parameter_count for name, network in results.networks.items()
        },
        by_message={
            kind: MessageTotal(count=traffic.count, bytes=traffic.bytes)
            for kind, traffic in results.messages.items()
        },
    )


def per_site(entries: Iterable[Entry], sites: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Site → bytes that it sent and received in these messages, as a key holder too."""
    up, down = Counter[str](), Counter[str]()
    for entry in entries:
        up[entry.sender] += entry.bytes * len(entry.receivers)
        for receiver in entry.receivers:
            down[receiver] += entry.bytes
    roles = {site: (site, holder_name(site)) for site in sites}
    return {
        site: (sum(up[role] for role in both), sum(down[role] for role in both))
        for site, both in roles.items()
    }


def timing(config: Config, results: Played) -> Timing:
    """Seconds of the run, of protection in all and per client and round, by stage."""
    steps: dict[str, float] = {}
    for summary in results.rounds:
        for step, seconds in summary["protection"].items():
            steps[step] = steps.get(step, 0.0) + seconds
    at_clients = sum(steps.get(s, 0.0) for s in _CLIENT_STEPS)
    turns = len(results.federation.sites) * config.system.rounds
    return Timing(
        total=time.perf_counter() - results.started,
        protection=sum(steps.values()),
        protection_per_client_round=at_clients / turns,
        by_stage=results.stages.seconds,
    )


def peak_memory() -> float:
    """Peak resident memory of this process and its largest child, MiB."""
    kib = sum(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return kib / 1024


def environment() -> dict[str, str]:
    """Versions and machine."""
    return {
        "Python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    } | {name: version(name) for name in _LIBRARIES}


def samples(results: Played) -> tuple[str, ...]:
    """A few public natural images as data URIs."""
    found = []
    for image in results.federation.natural_records.images[:_SAMPLES]:
        out = io.BytesIO()
        Image.fromarray(image).save(out, "PNG")
        found.append(f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}")
    return tuple(found)
