"""One pool cut into simulated sites that are unlike one another, patient by patient.

Three published ways to cut: by Dirichlet shares of each class (Yurochkin et al., ICML 2019; Hsu et
al., arXiv:1909.06335), a few classes per site (McMahan et al., AISTATS 2017, "pathological"), and
by Dirichlet shares of the whole (Li et al., ICDE 2022, "quantity skew"). Theirs divide images; here
a patient, or a cluster of near-duplicates, is never divided and goes by the rarest of its classes,
so that a site may show a few images of classes that were not meant for it. A mask counts as its
largest class.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from protocols.errors import DataError
from secure_natfl.data.records import Records
from secure_natfl.data.splits import fill, members_of, strata_of

Shares = NDArray[np.float64]

_DRAWS = 1000
_LEAST = 3
"""Patients of a site, so that both of its parts hold one and its training part two."""


@dataclass(frozen=True)
class Uneven:
    """How sites differ.

    concentration > 0: the parameter of the symmetric Dirichlet distribution of "dirichlet" and
    "quantity"; the smaller, the less alike. classes_per_site: of "pathological". folds: a site has
    at least so many patients.
    """

    kind: Literal["dirichlet", "pathological", "quantity"]
    concentration: float = 0.5
    classes_per_site: int = 2
    folds: int = 0


def uneven_sites(records: Records, sites: int, how: Uneven, seed: int) -> tuple[Records, ...]:
    """`records` cut into `sites` ≥ 2 patient-disjoint sites "name-1", "name-2", …, as `how` says.

    Deterministic in `seed`. Dirichlet shares are drawn again, at most 1000 times, until every site
    has three patients, or one for each fold. Raises DataError saying what to change where no such
    cut is found, or where sites with so few classes cannot hold all of them.
    """
    rng = np.random.default_rng((seed, sites))
    members = members_of(records)
    strata = strata_of(records, members, seed)
    least = max(_LEAST, how.folds)
    for _ in range(1 if how.kind == "pathological" else _DRAWS):
        quotas = _quotas(records, len(strata), sites, how, rng)
        images = np.array([sum(len(members[p]) for p in stratum) for stratum in strata])
        part = fill(members, strata, quotas, images @ quotas)
        if _fewest(records, part, sites) >= least:
            return tuple(
                records.take(np.flatnonzero(part == site), f"{records.name}-{site + 1}")
                for site in range(sites)
            )
    unit = "patients" if records.unit == "patient" else "separate images"
    raise DataError(
        f"no {how.kind} cut found that gives each of {sites} sites {least} {unit}",
        where=records.name,
        why=f"there are {len(members)}, and a site needs {least} for its training and test part",
        fix=_remedy(how, len(members) // least, sites),
    )


def _quotas(
    records: Records, classes: int, sites: int, how: Uneven, rng: np.random.Generator
) -> Shares:
    """The share of each class that each site is to hold, [classes, sites]; rows sum to 1."""
    alike = np.full(sites, how.concentration)
    if how.kind == "quantity":
        return np.tile(rng.dirichlet(alike), (classes, 1))
    if how.kind == "dirichlet":
        return rng.dirichlet(alike, classes)
    return _few_classes(records, classes, sites, how.classes_per_site, rng)


def _few_classes(
    records: Records, classes: int, sites: int, each: int, rng: np.random.Generator
) -> Shares:
    """Each site takes those of its classes that fewest hold so far, ties by lot."""
    if each > classes or each * sites < classes:
        raise DataError(
            f"{sites} sites with {each} classes each cannot share out {classes} classes",
            where=records.name,
            fix=f"set classes_per_site between {-(-classes // sites)} and {classes}",
        )
    held = np.zeros((classes, sites))
    for site in range(sites):
        chosen = np.lexsort((rng.random(classes), held.sum(axis=1)))[:each]
        held[chosen, site] = 1
    shares: Shares = held / held.sum(axis=1, keepdims=True)
    return shares


def _fewest(records: Records, part: NDArray[np.int64], sites: int) -> int:
    """Patients of the site that has fewest."""
    owners = dict(zip(records.patients, part.tolist(), strict=True))
    return int(np.bincount(list(owners.values()), minlength=sites).min())


def _remedy(how: Uneven, most: int, sites: int) -> str:
    """What to change; `most`: how many sites there can be at all."""
    if most < sites:
        return f"lower sites to {most}" if most > 1 else "leave the hospital whole"
    if how.kind == "pathological":
        return "lower sites, or raise classes_per_site"
    return f"lower sites, or raise concentration above {how.concentration:g}"
