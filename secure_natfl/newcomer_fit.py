"""`natfl fit`: a finished run's central model fitted to a hospital that took no part."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file

from protocols.chain import digest
from protocols.errors import ConfigError, DataError, RunFolderError
from secure_natfl.config import Config
from secure_natfl.data.arrays import to_float
from secure_natfl.data.overlap import check_overlap
from secure_natfl.data.records import Records
from secure_natfl.federation import examples
from secure_natfl.models import Network, build_backbone
from secure_natfl.newcomers import Fitted, fit_newcomer
from secure_natfl.report import formats
from secure_natfl.run_folder import save_network, write
from secure_natfl.sources import load_hospital, load_proxies
from secure_natfl.system_tables import NatImg
from secure_natfl.toml_config import parse, read
from secure_natfl.training import features_of


def fit(run: Path, source: str, out: Path, console: Console) -> Path:
    """Fit the central model of the run in `run` to the hospital in the file `source`.

    The folder `out` gets the network and what it was chosen by; its path comes back. The run's
    folder needs its config.toml and the last round's central model; the other hospitals' images
    are not needed. ConfigError, DataError or RunFolderError says what is missing or does not fit.
    """
    config = _configured(run, source)
    if out.exists():
        raise RunFolderError("exists already", where=str(out), fix="choose another --out")
    with console.status("Loading and checking images"):
        records = load_hospital(config.data.hospitals[0], config.data, lambda _: os.urandom(32))
        naturals = load_proxies(config.proxies, config.data)
        check_overlap(naturals.images, records)
    central, model = _central(run, config, records)
    with console.status("Fitting"):
        public = torch.from_numpy(to_float(naturals.images, config.data.size))
        few = examples(records, config.data.size)
        fitted = fit_newcomer(central, features_of(central.backbone, public), few, records.patients)
    out.mkdir(parents=True)
    save_network(fitted.network, out / "network.safetensors")
    stated = _stated(fitted, records) | {"central_sha256": digest(model.read_bytes())}
    write(out / "fit.json", json.dumps(stated, indent=2).encode())
    loss = float(np.mean(fitted.losses))
    console.print(
        f"{formats.plural(len(records), 'labelled image')} of "
        f"{formats.plural(records.patient_count, records.unit)}: a log loss of {loss:.2f} on those "
        f"held back, where guessing has {math.log(2):.2f}",
        highlight=False,
        soft_wrap=True,
    )
    if loss > math.log(2):
        console.print("[red]No better than guessing:[/red] label more images.", soft_wrap=True)
    return out / "network.safetensors"


def _configured(run: Path, source: str) -> Config:
    """The run's configuration with the newcomer as its one hospital, where its images lie."""
    file = run / "config.toml"
    if not file.exists():
        raise RunFolderError("there is no config.toml", where=str(run), fix="name a run's folder")
    table, own = read(str(file)), read(source)
    known = {"data": {"root", "hospitals"}, "proxies": {"path"}}
    for name, inner in own.items():
        if not isinstance(inner, dict) or not set(inner) <= known.get(name, set()):
            raise ConfigError(
                "unknown key",
                where=f"{source}: {name}",
                fix="give data.root, one data.hospitals, and proxies.path; the run has the rest",
            )
        table[name] = table.get(name, {}) | inner
    hospitals = own.get("data", {}).get("hospitals", [])
    if len(hospitals) != 1:
        raise ConfigError("not one hospital", where=f"{source}: data.hospitals", fix="give one")
    # It trains no network of its own.
    hospitals[0].setdefault("architectures", [table["models"]["central"]])
    config = parse(table, source)
    if not isinstance(config.system, NatImg):
        raise ConfigError(
            f"a run of {config.system.kind} has no central model of this kind",
            where=str(run),
            fix="take a run of natimg-fl",
        )
    return config


def _central(run: Path, config: Config, records: Records) -> tuple[Network, Path]:
    """The last round's central model, and its file."""
    models = sorted((run / "state").glob("round-*/central.safetensors"))
    if len(models) < config.system.rounds:
        raise RunFolderError(
            f"{len(models)} of {config.system.rounds} rounds have a central model",
            where=str(run),
            fix="finish the run first: natfl run --resume",
        )
    stored = load_file(models[-1])
    classes = len(records.class_names)
    rows = len(stored["xray.bias"])
    if records.form == "mask" or rows % classes:
        raise DataError(
            f"{records.name} tells apart {', '.join(records.class_names)}",
            where=records.name,
            why=f"the central model's heads have {rows} rows in all",
            fix="give the federation's classes, in its order",
        )
    backbone, features = build_backbone(config.models.central, config.data.size)
    network = Network(backbone, features, classes, len(stored["natural.bias"]), rows // classes)
    network.load_state_dict(stored)
    return network.eval(), models[-1]


def _stated(fitted: Fitted, records: Records) -> dict[str, object]:
    return {
        "hospital": records.name,
        "classes": records.class_names,
        "images": len(records),
        records.unit + "s": records.patient_count,
        "held_back_log_losses": fitted.losses,
        "trust_in_heads": fitted.trusts,
    }
