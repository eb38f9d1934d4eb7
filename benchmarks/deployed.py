"""A deployed round beside Flower's own: one SuperLink, the same SuperNodes, TLS, node keys.

`python -m benchmarks.deployed --json`, where the extra `flower` is installed. Three sites that
hold the key shares themselves, and a server, each in a folder and processes of its own on loopback.
In each session rounds of three kinds take turns, so that what else the machine does meets them
alike; the first of ours and its partner are left out.

ours: `natfl deploy`'s. A site trains under noise, charges its ledger, encrypts, shares its key,
    co-signs, personalises one epoch and evaluates; the server opens, distils one epoch, logs.
empty: as many questions and answers through the same relay to the same processes, one byte each.
    Nothing is signed, encrypted or stored; all are as long at work as they were with learning.
fedavg: every third time, Flower's FedAvg with its defaults, train and evaluate, with the network,
    images and epochs of the sites.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from benchmarks.ratio import named, ratio, share, spread
from secure_natfl.data.phantoms import HOSPITALS
from secure_natfl.deploy import launch, processes
from secure_natfl.deploy.kit import SERVER_FOLDER, make_kit
from secure_natfl.deploy.site_file import SITE_FILE
from secure_natfl.evaluation import site_test
from secure_natfl.federation import Federation, build
from secure_natfl.toml_config import parse

SITES = ("north", "east", "south")
NETWORK = "benchmarks.round_work:backbone"
IMAGES, SIZE, PROXIES = 366, 32, 120
"""Of a site's images 256 are for training, give or take a few patients."""

PORT = 28443
SESSIONS, ROUNDS = 4, 6
Seconds = dict[str, list[float]]


def write_kit(root: Path, rounds: int) -> None:
    """Keys, list and site files, and the same images for the peer."""
    shared: dict[str, Any] = {
        "run": {"name": "benchmark"},
        "proxies": {"images": PROXIES * rounds, "per_round": PROXIES},
        "models": {"central": NETWORK, "pretrain_epochs": 1},
        "system": {"rounds": rounds, "local_epochs": 1, "distill_epochs": 1},
        "privacy": {"mechanism": "dp-sgd", "epsilon": 8.0},
    }
    own = {
        name: {"kind": "phantom", "hospital": look, "images": IMAGES}
        for name, look in zip(SITES, HOSPITALS, strict=False)
    }
    tables = [{"name": name, "architectures": [NETWORK], **table} for name, table in own.items()]
    data = {"data": {"size": SIZE, "hospitals": tables}}
    federation = build(parse(shared | data, "benchmark"), lambda name: name.encode().ljust(32))
    remote = [
        {
            "name": site.name,
            "kind": "remote",
            "architectures": [site.architecture],
            "patients": site.patients,
            "unit": site.unit,
            "classes": list(site.task.classes),
        }
        for site in federation.sites
    ]
    source = root / "consortium.toml"
    source.write_text(tomli_w.dumps(shared | {"data": {"size": SIZE, "hospitals": remote}}))
    made = make_kit(source, root, ["localhost"], {}, [])
    policy = {
        "max_epsilon": 10.0,
        "max_rounds": rounds,
        "proxies": [made.enrolment.proxies],
        "architectures": [NETWORK],
        "share_scores": True,
    }
    for name in SITES:
        stated = {"hospital": own[name], "policy": policy}
        (root / name / SITE_FILE).write_text(tomli_w.dumps(stated))
    # What goes wrong in a session ends it: no round here waits for anybody.
    (root / SERVER_FOLDER / "server.toml").write_text("pause = 2.0\ntotal = 20.0\n")
    _hand_over(root, federation)


def _hand_over(root: Path, federation: Federation) -> None:
    """Each site's images as arrays, which is the least that a peer has to load."""
    for site in federation.sites:
        test = site_test(site).examples
        np.savez(
            root / site.name / "fedavg.npz",
            train_images=site.train.images.numpy(),
            train_labels=site.train.targets.argmax(1).numpy(),
            test_images=test.images.numpy(),
            test_labels=test.targets.argmax(1).numpy(),
        )


def play(root: Path, rounds: int) -> Seconds:
    """One session in an empty folder: seconds of each round, without the first and its partner."""
    write_kit(root, rounds)
    server, party = root / SERVER_FOLDER, "benchmarks.deployed_party"
    found = server / "seconds.json"
    try:
        launch.start_link(server, "127.0.0.1", PORT)
        launch.register(server, "127.0.0.1", PORT)
        for at, name in enumerate(SITES):
            launch.start_party(root / name, party)
            launch.start_node(root / name, f"localhost:{PORT}", PORT + 1 + at)
        launch.submit(server, _bundle(root / "app"))
        while not found.exists():
            if "superlink" not in processes.running(server):
                raise RuntimeError(f"the SuperLink ended: {server / 'superlink.log'}")
            time.sleep(1.0)
        time.sleep(1.0)
        seconds: Seconds = json.loads(found.read_text())
        # FedAvg has its first turn in a federation that runs already.
        return seconds | {name: seconds[name][1:] for name in ("ours", "empty")}
    finally:
        for name in (*SITES, SERVER_FOLDER):
            processes.stop(root / name)


def _bundle(folder: Path) -> Path:
    """The app's files, with the deployment's own relay among them."""
    shutil.copytree(Path(__file__).with_name("deployed_app"), folder)
    shutil.copy(launch.RELAY / "client.py", folder / "relay.py")
    return folder


def _session(keep: Path | None) -> Seconds:
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = os.environ["XDG_STATE_HOME"] = str(Path(name) / "home")
        root = Path(name) / "kit"
        root.mkdir()
        seconds = play(root, ROUNDS)
    if keep:
        with keep.open("a", encoding="utf-8") as file:
            file.write(json.dumps(seconds) + "\n")
    return seconds


def figures(seconds: Seconds) -> dict[str, Any]:
    """Ratios of medians with 95 % intervals over rounds, and quartiles."""
    more = [a - b for a, b in zip(seconds["ours"], seconds["empty"], strict=True)]
    ours, fedavg, training = (seconds[name] for name in ("ours", "fedavg", "fedavg_training"))
    return {
        **named("deployed_round_x_flower", ratio(ours, fedavg)),
        **named("deployed_round_x_flower_training_only", ratio(ours, training)),
        **named("overhead", share(more, seconds["empty"])),
        "overhead_seconds": statistics.median(more),
        "seconds": {name: spread(one) for name, one in seconds.items()},
        "rounds": {name: len(one) for name, one in seconds.items()},
        "sites": len(SITES),
        "images": IMAGES,
        "cores": os.cpu_count(),
    }


def main() -> None:
    """Measure, then print JSON, or the quartiles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--keep", type=Path, help="a file of sessions: add these, count all in it")
    options = parser.parse_args()
    # A benchmark that is ended ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    sessions = [_session(options.keep) for _ in range(options.sessions)]
    if options.keep:
        sessions = [json.loads(line) for line in options.keep.read_text("utf-8").splitlines()]
    found = figures({name: [s for one in sessions for s in one[name]] for name in sessions[0]})
    if options.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    for one, (low, median, high) in found["seconds"].items():
        sys.stdout.write(f"{one:16s} {median:7.2f} s a round ({low:.2f} to {high:.2f})\n")


if __name__ == "__main__":
    main()
