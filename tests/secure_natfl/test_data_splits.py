import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import DataError
from secure_natfl.data.records import Records
from secure_natfl.data.splits import check_disjoint, folds, simulate_sites, split


def make(labels: list[int], patients: list[int], classes: int = 2) -> Records:
    return Records(
        np.zeros((len(labels), 2, 2), dtype=np.uint8),
        np.array(labels, dtype=np.int64),
        tuple(f"class {i}" for i in range(classes)),
        tuple(f"p{i}" for i in patients),
        "patient",
        "clinic",
    )


COHORT = make([i % 10 < 3 for i in range(300)], [i // 3 * 2 + i % 2 for i in range(300)])


def test_no_patient_on_both_sides_and_nothing_lost() -> None:
    train, test = split(COHORT, 0.3, seed=1)
    assert not set(train.patients) & set(test.patients)
    assert len(train) + len(test) == 300
    assert len(test) == pytest.approx(90, abs=3)


def test_classes_keep_their_proportion() -> None:
    train, test = split(COHORT, 0.3, seed=1)
    assert train.labels.mean() == pytest.approx(COHORT.labels.mean(), abs=0.03)
    assert test.labels.mean() == pytest.approx(COHORT.labels.mean(), abs=0.06)


def test_a_rare_class_reaches_both_sides() -> None:
    labels = [0] * 96 + [1] * 4
    train, test = split(make(labels, list(range(100))), 0.25, seed=3)
    assert train.counts()["class 1"] == 3
    assert test.counts()["class 1"] == 1


def test_seed_decides_and_order_does_not() -> None:
    train, _ = split(COHORT, 0.3, seed=1)
    again, _ = split(COHORT, 0.3, seed=1)
    other, _ = split(COHORT, 0.3, seed=2)
    assert train.patients == again.patients
    assert set(train.patients) != set(other.patients)
    turned, _ = split(COHORT.take(range(299, -1, -1)), 0.3, seed=1)
    assert set(turned.patients) == set(train.patients)


def test_one_class_is_split_like_any_other() -> None:
    train, test = split(make([1] * 20, list(range(20))), 0.25, seed=0)
    assert (len(train), len(test)) == (15, 5)


def test_one_patient_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"clinic: 1 patient\(s\) cannot fill 2 parts"):
        split(make([0, 1, 0], [5, 5, 5]), 0.3, seed=0)


def test_two_patients_fill_both_sides_whatever_the_fraction() -> None:
    train, test = split(make([0, 0, 0], [1, 1, 2]), 0.01, seed=0)
    assert len(train) > 0
    assert len(test) > 0


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_impossible_fractions(fraction: float) -> None:
    with pytest.raises(DataError, match="impossible"):
        split(COHORT, fraction, seed=0)


def test_multi_label_strata() -> None:
    labels = np.array([[1, 0], [0, 0], [0, 0], [0, -1]] * 25, dtype=np.int64)
    base = make([0] * 100, list(range(100)))
    records = Records(base.images, labels, base.class_names, base.patients, "image", "clinic")
    train, test = split(records, 0.2, seed=0)
    assert train.counts()["class 0"] == 20
    assert test.counts()["class 0"] == 5


def test_simulated_sites_are_disjoint_and_sized() -> None:
    sites = simulate_sites(COHORT, (3, 2, 1), seed=4)
    assert [site.name for site in sites] == ["clinic-1", "clinic-2", "clinic-3"]
    assert [len(site) for site in sites] == pytest.approx([150, 100, 50], abs=6)
    check_disjoint({site.name: site for site in sites})
    assert [len(site) for site in simulate_sites(COHORT, 3, seed=4)] == pytest.approx(
        [100] * 3, abs=5
    )
    for parts in (0, (), (1.0, 0.0), (1.0, -1.0)):
        with pytest.raises(DataError, match="cannot cut"):
            simulate_sites(COHORT, parts, seed=0)


def test_a_patient_in_two_splits_is_refused_by_name() -> None:
    train, test = split(COHORT, 0.3, seed=1)
    leaky = test.take([0])
    with pytest.raises(DataError, match=r"1 patient\(s\) are in both test and validation") as error:
        check_disjoint({"train": train, "test": test, "validation": leaky})
    assert leaky.patients[0] not in str(error.value)


def test_folds_cover_every_image_once() -> None:
    parts = folds(COHORT, 5, seed=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(300))
    check_disjoint({str(i): COHORT.take(part) for i, part in enumerate(parts)})
    for k, message in ((1, "too few"), (301, "cannot fill")):
        with pytest.raises(DataError, match=message):
            folds(COHORT, k, seed=0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=2, max_size=40),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_any_cohort_of_two_patients_splits_cleanly(
    rows: list[tuple[int, int]], fraction: float, seed: int
) -> None:
    records = make([label for label, _ in rows], [patient for _, patient in rows], classes=3)
    if records.patient_count < 2:
        return
    train, test = split(records, fraction, seed)
    check_disjoint({"train": train, "test": test})
    assert len(train) + len(test) == len(records)
