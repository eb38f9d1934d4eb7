"""One cell in a worker process: train with one fold held back, predict that fold, keep little."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from protocols.errors import NatflError
from secure_natfl import baselines
from secure_natfl.config import Config
from secure_natfl.evaluation import TestPart, hospital_tests, predict
from secure_natfl.federation import Federation
from secure_natfl.models import Network
from secure_natfl.progress import Stages
from secure_natfl.results import Played, Results
from secure_natfl.run_folder import RunFolder
from secure_natfl.seeds import Seeds
from secure_natfl.setup import speaking_inputs
from secure_natfl.site_state import secret
from secure_natfl.study.cell_run import Job, StudyRun, start_of
from secure_natfl.study.file import Model
from secure_natfl.study.folder import Record
from secure_natfl.study.newcomers import fitted, heads_of, newcomer_tests, newcomers_of
from secure_natfl.study.preflight import simulated
from secure_natfl.study.whole_run import ClearRun, record_of
from secure_natfl.summed.run import SummedRun

Arrays = dict[str, NDArray[Any]]


def play(job: Job) -> str:
    """Play one cell to its files; the fault in one line, or "" when all went well.

    Runs in a process of its own, again at any time after it was killed.
    """
    start, worked = time.perf_counter(), time.process_time()
    torch.set_num_threads(1)
    try:
        players = {"federation": _federation, "comparison": _comparison}
        arrays, record = players.get(job.cell.kind, _whole)(job)
        config = job.cell.config
        record |= {
            "kind": job.cell.kind,
            "seed": config.run.seed,
            "fold": config.data.fold,
            "config_sha256": config.identity,
            "simulated": simulated(config),
            "private": not config.seeded and record.get("epsilon", "inf") != "inf",
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - worked,
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        job.folder.finish(job.cell, arrays, record)
    except NatflError as error:
        return str(error)
    except Exception as error:  # A cell's fault must not end the study.
        return f"{type(error).__name__}: {error}"
    finally:
        # What was charged stays in the ledgers; a run that failed is played anew.
        shutil.rmtree(job.folder.work(job.cell), ignore_errors=True)
    return ""


def keys_of(images: Tensor) -> NDArray[np.int64]:
    """A number per image [N, 1, H, W] that is the same in every cell, whatever its order."""
    digests = [blake2b(image.numpy().tobytes(), digest_size=8).digest() for image in images]
    return np.array([int.from_bytes(one, "big", signed=True) for one in digests], np.int64)


def _opened(job: Job) -> tuple[Config, RunFolder]:
    """The cell's configuration with the study's ledgers, and the folder of its run."""
    config, work = job.cell.config, job.folder.work(job.cell)
    ledger = config.ledger.model_copy(update={"folder": str(job.folder.ledgers / job.cell.id)})
    config = config.model_copy(update={"ledger": ledger})
    text = tomli_w.dumps(config.model_dump(mode="json"))
    for table in config.data.hospitals:
        # All cells know a hospital's patients under one name, or their folds would differ.
        _keep_key(Path(ledger.folder) / table.name, job.folder.hospital_key(table.name))
    return config, RunFolder.open(work, config, text, resume=(work / "run.json").exists())


def _whole(job: Job) -> tuple[Arrays, Record]:
    config, opened = _opened(job)
    kind = ClearRun if job.cell.kind == "clear run" else SummedRun
    results = kind(config, opened, Console(quiet=True)).play()
    return {}, _costs(results) | record_of(results, job.cell.models)


def _federation(job: Job) -> tuple[Arrays, Record]:
    config, opened = _opened(job)
    run = StudyRun(config, opened, Console(quiet=True))
    run.job = job
    results = run.play()
    central = {"central": results.state.central, **_controls(job, results)}
    tests = hospital_tests(results.federation)
    arrays: Arrays = {}
    late = newcomers_of(job, results.federation)
    for hospital, part in (tests | newcomer_tests(late)).items():
        arrays |= _truth(hospital, part)
        for name, network in central.items():
            if name in job.cell.models:
                found = _central(network, part, heads_of(results.system, hospital, job))
                arrays[f"{hospital}:{name}"] = found[None].astype(np.float32)
        if run.personal:
            sites = _sites(results.federation, hospital)
            arrays |= _by_site(hospital, "personalised", results.state.answering, part, sites)
    return arrays | fitted(job, results, late), _costs(results)


def _controls(job: Job, results: Results) -> dict[str, Network]:
    """Central models of the same federation that is asked about other images."""
    makers = {
        "noise_proxies": baselines.noise_proxies,
        "in_domain_proxies": baselines.in_domain_proxies,
    }
    asked = {name: make for name, make in makers.items() if name in job.cell.models}
    if not asked:
        return {}
    config, system = job.cell.config, results.system
    seeds = Seeds.of_study(int(config.run.seed))
    public, stages = results.networks, Stages(Console(quiet=True))
    speaking = speaking_inputs(config, results.federation, public, results.folder, seeds, stages)
    network = public[config.models.central]
    return {
        name: make(config, system, results.terms, speaking, network, seeds)
        for name, make in asked.items()
    }


def _central(network: Network, part: TestPart, heads: Sequence[int]) -> NDArray[np.float64]:
    """Probabilities [n, C]: of one head, or the mean of several."""
    found = [predict(network, part, head) for head in heads]
    return np.asarray(np.mean(found, axis=0))


def _sites(federation: Federation, hospital: str) -> list[str]:
    """Whose own networks are asked about a hospital: its sites', or everybody's if it has none."""
    sites = federation.hospitals.get(hospital, federation.sites)
    return [site.name for site in sites]


def _comparison(job: Job) -> tuple[Arrays, Record]:
    config = job.cell.config
    federation, networks = start_of(config, job.folder)
    seeds = Seeds.of_study(int(config.run.seed))
    local, pooled = {}, None
    if "local_only" in job.cell.models:
        for site in federation.sites:
            public = networks[site.architecture]
            local[site.name] = baselines.local_only(config, federation, site, public, seeds)
    if "pooled" in job.cell.models:
        pooled = baselines.pooled(config, federation, networks[config.models.central], seeds)
    tests = hospital_tests(federation)
    arrays: Arrays = {}
    late = newcomers_of(job, federation)
    for hospital, part in (tests | newcomer_tests(late)).items():
        arrays |= _truth(hospital, part)
        if local:
            sites = _sites(federation, hospital)
            arrays |= _by_site(hospital, "local_only", local, part, sites)
        if pooled is not None:
            arrays[f"{hospital}:pooled"] = predict(pooled, part)[None].astype(np.float32)
    return arrays, {}


def _truth(hospital: str, part: TestPart) -> Arrays:
    units = [blake2b(p.encode(), digest_size=8).digest() for p in part.truth.patients]
    return {
        f"{hospital}:keys": keys_of(part.examples.images),
        f"{hospital}:units": np.array(
            [int.from_bytes(one, "big", signed=True) for one in units], np.int64
        ),
        f"{hospital}:targets": part.truth.targets,
        f"{hospital}:known": part.truth.known,
        f"{hospital}:multi_label": np.array(part.truth.multi_label),
        f"{hospital}:patients": np.array(part.truth.unit == "patient"),
    }


def _by_site(
    hospital: str,
    model: Model,
    networks: dict[str, Network],
    part: TestPart,
    sites: Sequence[str],
) -> Arrays:
    """What each of these sites' own network says of the hospital's fold: [sites, n, C]."""
    found = np.stack([predict(networks[name], part) for name in sites])
    return {
        f"{hospital}:{model}": found.astype(np.float32),
        f"{hospital}:{model}:sites": np.array(sites),
    }


def _costs(results: Played) -> Record:
    plan = results.terms.noise_plan
    names = [site.name for site in results.federation.sites]
    spent = [plan.spending(name) for name in names] if plan else []
    return {
        "epsilon": _spelled(s.epsilon for s in spent),
        "epsilon_isolated": _spelled(s.epsilon_isolated for s in spent),
        "upload_bytes": sum(r["upload_bytes"] for r in results.rounds),
        "download_bytes": sum(r["download_bytes"] for r in results.rounds),
        "protection_seconds": sum(sum(r["protection"].values()) for r in results.rounds),
        "stages": results.stages.seconds,
    }


def _keep_key(folder: Path, key: bytes) -> None:
    """Put a hospital's key where its run looks for one."""

    def drawn(_: int) -> bytes:
        return key

    secret(folder, "identity", drawn)


def _spelled(epsilons: Iterable[float]) -> float | str:
    """The largest; "inf" without noise."""
    return max(epsilons, default="inf")
