"""What the leakage notebook needs beside the attacks: a run, sites at other budgets, CKKS in slots.

Called by `notebooks/leakage_attack.py` alone; `natfl attack` plays the whole table.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console

from attacks.answers.label_distribution import divergence, guess_shares
from attacks.answers.laboratory import Floats
from attacks.cryptanalysis import KeyGuess, Published, from_slots, read_slots
from attacks.gradients.laboratory import GradientLab, Observation, Scene, Trial
from protocols.errors import ConfigError
from protocols.slots import SLOTS18_140
from protocols.tenseal_slots import SlotsSecret, SlotsSum
from secure_natfl.execute import execute
from secure_natfl.leakage.answer_lab import RunAnswers
from secure_natfl.leakage.attacked import AnswersRun, AttackedRun
from secure_natfl.leakage.key_lab import RunKeys
from secure_natfl.leakage.releases import Releases
from secure_natfl.progress import Stages
from secure_natfl.terms import agree
from secure_natfl.toml_config import parse

_READ: Final = ("pos_embed", "patch_embed.proj.weight")  # all that the closed form looks at


def open_run(folder: str, table: Mapping[str, Any]) -> AnswersRun:
    """The finished run in `folder`; if that is empty, one of configuration `table`, played here.

    A run played here lies in a temporary folder. Raises what `AttackedRun.open` and `parse` raise,
    and ConfigError for a run of sums.
    """
    quiet = Console(file=io.StringIO())
    path = Path(folder)
    if not folder:
        path = Path(tempfile.mkdtemp(prefix="natfl-notebook-")) / "run"
        execute(parse(dict(table), "the notebook"), path, "the leakage notebook", quiet)
    run = AttackedRun.open(path, Stages(quiet))
    if not isinstance(run, AnswersRun):
        raise ConfigError(
            f"a run of {run.config.system.kind} shows no answers to public images",
            where=str(path),
            fix="hand the notebook a run of natimg-fl; natfl attack takes any",
        )
    if run.config.speed.threads:
        torch.set_num_threads(run.config.speed.threads)
    return run


def attacked_clients(lab: GradientLab, scene: Scene, arm: str, count: int) -> list[Trial]:
    """One client for each seed below `count`: the same images in every scene and arm.

    Clients of one seed each all start from the laboratory's first network, as in one round.
    """
    chosen = next(one for one in lab.arms(scene) if one == arm)
    return [
        next(iter(lab.trials(scene, chosen, 1, np.random.default_rng(seed))))
        for seed in range(count)
    ]


@dataclass(frozen=True, eq=False)
class SharesFound:
    """What L1 guessed of some sites. shares, guess: [sites, classes]; prior: [classes].

    saved: the share of the prior's mean Kullback–Leibler divergence that the guess saves, 0 for
    the prior itself, 1 for the truth.
    """

    shares: Floats
    guess: Floats
    prior: Floats
    saved: float


class ShareAttack:
    """L1 on sites like those of `run`, whose budget may be another than the run's.

    epsilon: None for the run's own; else its mechanism is calibrated anew as sites would agree on
    it, so only for runs with a budget. Sites speak in the first round.
    """

    def __init__(self, run: AnswersRun, epsilon: float | None = None) -> None:
        """Raises ConfigError where the run's answers are not those of heads (see `Arms.of`)."""
        self.lab = RunAnswers(run, 1)
        if epsilon is not None:
            site = run.federation.sites[0].name
            self.lab.arms = replace(self.lab.arms, mechanism=_mechanisms(run, epsilon)[site])

    def __call__(self, arm: str, sites: int, shadows: int) -> SharesFound:
        """Guess the shares of `sites` private sites, taught by `shadows` of the attacker's own."""
        random, known = np.random.default_rng(0), self.lab.knowledge(arm)
        mine, taught = self.lab.sites(arm, shadows, random, shadow=True)
        seen, truth = self.lab.sites(arm, sites, random, shadow=False)
        guess, prior = guess_shares(seen.answers, known, mine.answers, taught.shares)
        lost, usual = (
            float(divergence(truth.shares, one, multi_label=known.multi_label).mean())
            for one in (guess, prior[None])
        )
        return SharesFound(truth.shares, guess, prior, 1 - lost / usual)


def _mechanisms(run: AnswersRun, epsilon: float) -> Mapping[str, Any]:
    if not hasattr(run.config.privacy, "epsilon"):
        raise ConfigError(
            f"{run.config.privacy.mechanism} has no budget to change",
            where="leakage notebook",
            fix="attack a run with noise",
        )
    config = run.config.model_copy(
        update={"privacy": run.config.privacy.model_copy(update={"epsilon": epsilon})}
    )
    groups = {site.name: run.system.group_of(site) for site in run.federation.sites}
    layout = run.system.layout(config.proxies.per_round)
    return agree(config, run.federation, layout, run.system.weights(), groups).mechanisms


class SlotsRound:
    """One round of federated averaging under CKKS in slots, as it is commonly set up.

    vectors: numbers [size] of each client, within `SLOTS18_140.value_limit`; all clients share
    one key. `values` float64[size] is the sum that is published. The server holds `_pairs`.
    """

    def __init__(self, vectors: Sequence[Floats]) -> None:
        self._ring, self._size = SLOTS18_140, len(vectors[0])
        secret, total = SlotsSecret(self._ring), SlotsSum(self._ring, self._size)
        self._uploads = [secret.encrypt(vector) for vector in vectors]
        for upload in self._uploads:
            total.add(upload, 1)
        body = total.body()
        self.values: Floats = secret.read_sum(body, self._size)
        self.key = secret.coefficients()
        self._pairs = self._first(body, self._ring.sum_primes)

    def published(self, values: Floats) -> Published:
        """The server's ciphertexts beside a sum as it is published, such as `values`."""
        return from_slots(self._pairs, self._ring.primes[0], values, self._ring.slot_scale)

    def seen(self, client: int) -> Floats:
        """A part of one client's upload as the server has it: 64×64 residues over their prime."""
        pairs = self._first(self._uploads[client], self._ring.upload_primes)
        part: Floats = pairs[0, 0, : 64 * 64].reshape(64, 64) / self._ring.primes[0]
        return part

    def read(self, client: int, key: KeyGuess) -> Floats:
        """One client's upload [size], read with a guessed key."""
        pairs = self._first(self._uploads[client], self._ring.upload_primes)
        found = read_slots(key, pairs, self._ring.primes[0], self._ring.slot_scale)
        return found[: self._size]

    def _first(self, body: bytes, primes: tuple[int, ...]) -> Any:
        """A body's ciphertexts modulo the first prime alone: uint64[blocks, 2, N]."""
        return self._ring.unpack(body, self._ring.blocks(self._size), primes)[:, :, 0]


def exact_sum(run: AttackedRun) -> tuple[Sequence[Published], Any] | None:
    """A sum of exact integers in the run's own mode, as it is published, and the key behind it.

    None where the run has no such sums: in the clear, and in slots.
    """
    if run.config.mode in ("plain/none", "slots/shared"):
        return None
    sites = next(iter(run.terms.groups.values()))
    alphas = tuple(run.terms.alphas[site] for site in sites)
    keys = RunKeys(run.config.mode, run.terms.preset, alphas, Releases.of(run))
    return next(keys.keys("protected", 1, np.random.default_rng(0)))


def as_numbers(observations: Sequence[Observation]) -> tuple[list[Floats], Floats]:
    """Clients' gradients as numbers [size] that fit into slots, and the public unit of each.

    Of the two layers alone that the closed form for transformers reads, to keep uploads short;
    a layer has one unit for all clients.
    """
    shown = [_layers(one) for one in observations]
    limit = SLOTS18_140.value_limit
    units = {name: max(np.abs(one[name]).max() for one in shown) / limit for name in _READ}
    flat = [np.concatenate([(one[n] / units[n]).ravel() for n in _READ]) for one in shown]
    return flat, np.concatenate([np.full(shown[0][name].size, units[name]) for name in _READ])


def as_gradient(observation: Observation, numbers: Floats) -> Observation:
    """What is known of a client once its two layers are read: `numbers`, in the gradient's unit.

    observation: for the shapes and the public knowledge; its own gradient is not used.
    """
    read, at = {}, 0
    for name in _READ:
        shape = _layers(observation)[name].shape
        size = int(np.prod(shape))
        read[name] = torch.from_numpy(numbers[at : at + size].reshape(shape)).float()
        at += size
    named = observation.knowledge.network.named_parameters()
    gradient = tuple(read.get(name, torch.zeros_like(value)) for name, value in named)
    return replace(observation, gradient=gradient)


def _layers(observation: Observation) -> dict[str, Floats]:
    names = [name for name, _ in observation.knowledge.network.named_parameters()]
    shown = zip(names, observation.gradient or (), strict=True)
    return {name: value.double().numpy() for name, value in shown if name in _READ}
