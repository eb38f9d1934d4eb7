import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import DataError
from secure_natfl.data.partitions import Uneven, uneven_sites
from secure_natfl.data.records import Records
from secure_natfl.data.splits import assign

KINDS = ("dirichlet", "pathological", "quantity")


def pool(images: int = 400, classes: int = 4, per_patient: int = 1) -> Records:
    patient = np.arange(images) // per_patient
    return Records(
        np.zeros((images, 2, 2), dtype=np.uint8),
        (patient % classes).astype(np.int64),
        tuple(f"class {i}" for i in range(classes)),
        tuple(f"p{i}" for i in patient),
        "patient",
        "pool",
    )


def shares(sites: tuple[Records, ...]) -> np.ndarray:
    """Share of each class at each site: [sites, classes]."""
    counts = np.array([list(site.counts().values()) for site in sites])
    return counts / counts.sum(1, keepdims=True)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    sites=st.integers(2, 7),
    per_patient=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_every_patient_is_at_one_site_and_nothing_is_lost(kind, sites, per_patient, seed):
    records = pool(300, per_patient=per_patient)
    found = uneven_sites(records, sites, Uneven(kind), seed)
    patients = [set(site.patients) for site in found]
    assert set.union(*patients) == set(records.patients)
    assert sum(map(len, patients)) == records.patient_count
    assert sum(map(len, found)) == 300
    assert min(map(len, patients)) >= 3
    assert [site.name for site in found] == [f"pool-{i + 1}" for i in range(sites)]
    again = uneven_sites(records, sites, Uneven(kind), seed)
    assert [site.patients for site in again] == [site.patients for site in found]


def test_a_small_concentration_makes_sites_unlike_one_another():
    def spread(concentration: float) -> float:
        cuts = [
            uneven_sites(pool(), 5, Uneven("dirichlet", concentration), seed) for seed in range(5)
        ]
        return float(np.mean([shares(sites).std(0).mean() for sites in cuts]))

    assert spread(0.1) > 2 * spread(2.0)
    assert spread(1000.0) < 0.03


def test_few_classes_at_each_site_and_every_class_somewhere():
    for each, sites in ((1, 4), (2, 5), (3, 2), (4, 3)):
        found = shares(uneven_sites(pool(), sites, Uneven("pathological", 0.5, each), seed=3))
        assert ((found > 0).sum(1) == each).all()
        assert (found > 0).any(0).all()


def test_quantity_makes_sizes_differ_and_leaves_classes_alike():
    sites = uneven_sites(pool(4000), 4, Uneven("quantity", 0.5), seed=1)
    sizes = [len(site) for site in sites]
    assert max(sizes) > 3 * min(sizes)
    assert np.abs(shares(sites) - 0.25).max() < 0.05


def test_a_mask_goes_by_the_largest_of_its_classes():
    masks = np.zeros((60, 4, 4), dtype=np.int64)
    masks[:30, 0, :2], masks[:30, 1, 0] = 1, 2
    masks[30:, :2] = 2
    images = np.zeros((60, 4, 4), dtype=np.uint8)
    ids = tuple(map(str, range(60)))
    records = Records(images, masks, ("background", "a", "b"), ids, "image", "masks")
    assert records.main_classes().tolist() == [1] * 30 + [2] * 30
    sites = uneven_sites(records, 2, Uneven("pathological", 0.5, 1), seed=0)
    assert sorted(set(site.main_classes().tolist()).pop() for site in sites) == [1, 2]


@pytest.mark.parametrize(
    ("records", "sites", "how", "said"),
    [
        (
            pool(8),
            4,
            Uneven("dirichlet", 0.1),
            "each of 4 sites 3 patients.*lower sites to 2",
        ),
        (pool(5), 4, Uneven("quantity", 0.1), "leave the hospital whole"),
        (pool(13, 1), 4, Uneven("dirichlet", 0.01), "or raise concentration above 0.01"),
        (pool(), 3, Uneven("pathological", 0.5, 1), "set classes_per_site between 2 and 4"),
        (pool(), 3, Uneven("pathological", 0.5, 5), "set classes_per_site between 2 and 4"),
        (pool(12), 4, Uneven("pathological", 0.5, 2, folds=5), "4 sites 5 patients"),
    ],
)
def test_a_cut_that_cannot_be_says_what_to_change(records, sites, how, said):
    with pytest.raises(DataError, match=rf"^pool: .*{said}"):
        uneven_sites(records, sites, how, seed=0)


def test_the_random_cut_is_what_it_ever_was():
    """Runs on the same images and seed divide them the same way from version to version."""
    cohort = pool(300, classes=3, per_patient=2)
    several = np.array([[i % 3 - 1, i % 2, 1 - i % 2] for i in range(300)], dtype=np.int64)
    findings = Records(
        cohort.images, several, cohort.class_names, cohort.patients, "patient", "findings"
    )
    found = [
        hashlib.sha256(assign(records, parts, seed).tobytes()).hexdigest()[:16]
        for records, parts, seed in (
            (cohort, (0.7, 0.3), 1),
            (cohort, (3, 2, 1), 4),
            (findings, (1, 1, 1, 1), 0),
        )
    ]
    assert found == PINNED


PINNED = ["26ffc7267a5383dc", "7e0122a674db9700", "66ccee6253c153cd"]
