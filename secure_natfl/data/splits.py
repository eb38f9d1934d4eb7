"""Splits by patient: training and test, simulated sites, folds; and the check that none overlap."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from protocols.errors import DataError
from secure_natfl.data.records import Records


def split(records: Records, test_fraction: float, seed: int) -> tuple[Records, Records]:
    """Training and test records with no patient in both, classes in proportion where possible.

    Deterministic in `seed` and independent of the order of the images. Called once per site
    before anything is trained. Raises DataError unless 0 < `test_fraction` < 1 and there are at
    least two patients.
    """
    if not 0 < test_fraction < 1:
        raise DataError(
            f"test fraction {test_fraction} is impossible",
            where=records.name,
            fix="choose a fraction between 0 and 1, such as 0.3",
        )
    part = assign(records, (1 - test_fraction, test_fraction), seed)
    train, test = (records.take(np.flatnonzero(part == side)) for side in (0, 1))
    return train, test


def simulate_sites(
    records: Records, parts: int | Sequence[float], seed: int
) -> tuple[Records, ...]:
    """One hospital cut into patient-disjoint sites, which reports must call simulated.

    `parts`: how many equal sites, or their relative sizes. Sites are named "name-1", "name-2", ….
    Raises DataError for fewer patients than sites or a size that is not positive.
    """
    shares = (1.0,) * parts if isinstance(parts, int) else tuple(parts)
    if not shares or min(shares) <= 0:
        raise DataError(
            f"cannot cut into parts {parts}", where=records.name, fix="give positive sizes"
        )
    part = assign(records, shares, seed)
    return tuple(
        records.take(np.flatnonzero(part == index), f"{records.name}-{index + 1}")
        for index in range(len(shares))
    )


def folds(records: Records, k: int, seed: int) -> tuple[NDArray[np.int64], ...]:
    """Test indices of `k` patient-disjoint folds, which together cover every image once.

    For out-of-fold predictions: train on the rest, predict the fold. Raises DataError for k < 2
    or fewer than `k` patients.
    """
    if k < 2:
        raise DataError(f"{k} folds are too few", where=records.name, fix="choose 2 or more")
    part = assign(records, (1.0,) * k, seed)
    return tuple(np.flatnonzero(part == fold) for fold in range(k))


def check_disjoint(splits: Mapping[str, Records]) -> None:
    """Called before training; raises DataError when a patient is in two of the named splits."""
    seen: dict[str, str] = {}
    shared: dict[tuple[str, str], set[str]] = {}
    for name, records in splits.items():
        for patient in set(records.patients):
            earlier = seen.setdefault(patient, name)
            if earlier != name:
                shared.setdefault((earlier, name), set()).add(patient)
    for (first, second), patients in shared.items():
        raise DataError(
            f"{len(patients)} patient(s) are in both {first} and {second}",
            why="a score would measure memory, and a privacy unit would count twice",
            fix="split by patient; where the same id means two people, prefix the hospital's name",
        )


def assign(records: Records, shares: Sequence[float], seed: int) -> NDArray[np.int64]:
    """The part (index into `shares`) of each image, int64 N; whole patients, every part non-empty.

    Patients are taken in the order of a hash of `seed` and id, rarest class first, each into the
    part that is furthest below its share of that class, then of all images.
    """
    members = members_of(records)
    if len(members) < len(shares):
        raise DataError(
            f"{len(members)} patient(s) cannot fill {len(shares)} parts",
            where=records.name,
            why="a patient is never divided",
            fix="add patients, or ask for fewer parts",
        )
    quota = np.asarray(shares, dtype=np.float64) / float(np.sum(shares))
    strata = strata_of(records, members, seed)
    quotas = np.tile(quota, (len(strata), 1))
    part = fill(members, strata, quotas, quota * len(records))
    return _without_gaps(part, members, len(quota))


def fill(
    members: Mapping[str, list[int]],
    strata: Sequence[Sequence[str]],
    quotas: NDArray[np.float64],
    sizes: NDArray[np.float64],
) -> NDArray[np.int64]:
    """The part of each image, int64 N, when each patient goes where its class lacks most.

    `members`: patient → rows, N in all. `quotas`: share of each stratum that each part is to hold,
    strata × parts, rows sum to 1. `sizes`: images that each part is to hold; it breaks ties.
    """
    part = np.full(sum(map(len, members.values())), -1, dtype=np.int64)
    total = np.zeros(len(sizes))
    for stratum, quota in zip(strata, quotas, strict=True):
        images = sum(len(members[patient]) for patient in stratum)
        filled = np.zeros(len(quota))
        for patient in stratum:
            lack = np.round(quota * images - filled, 9)
            overall = sizes - total
            chosen = max(range(len(quota)), key=lambda j: (lack[j], overall[j]))
            part[members[patient]] = chosen
            filled[chosen] += len(members[patient])
            total[chosen] += len(members[patient])
    return part


def members_of(records: Records) -> dict[str, list[int]]:
    """Patient → the rows of its images."""
    members: dict[str, list[int]] = {}
    for index, patient in enumerate(records.patients):
        members.setdefault(patient, []).append(index)
    return members


def strata_of(records: Records, members: Mapping[str, list[int]], seed: int) -> list[list[str]]:
    """Patients by the rarest class that they show, smallest stratum first, in hash order."""
    frequency = records.counts()
    main = records.main_classes()
    rarity = np.array([frequency[name] for name in records.class_names])
    strata: dict[int, list[str]] = {}
    order = sorted(members, key=lambda p: hashlib.sha256(f"{seed}|{p}".encode()).digest())
    for patient in order:
        shown = _shown(main[members[patient]])
        rarest = min(shown, key=lambda c: (rarity[c], c), default=-1)
        strata.setdefault(rarest, []).append(patient)
    return sorted(strata.values(), key=len)


def _shown(labels: NDArray[np.int64]) -> list[int]:
    """The classes among a patient's labels; none where a multi-label patient shows none."""
    several = labels.ndim == 2
    found = np.flatnonzero((labels == 1).any(axis=0)) if several else np.unique(labels)
    return [int(c) for c in found]


def _without_gaps(
    part: NDArray[np.int64], members: Mapping[str, list[int]], parts: int
) -> NDArray[np.int64]:
    """Gives each empty part the smallest patient of the part that has most patients."""
    for empty in sorted(set(range(parts)) - set(part.tolist())):
        owners = {patient: int(part[rows[0]]) for patient, rows in members.items()}
        counts = np.bincount(list(owners.values()), minlength=parts)
        donors = [p for p in members if owners[p] == int(counts.argmax())]
        part[members[min(donors, key=lambda p: (len(members[p]), p))]] = empty
    return part
