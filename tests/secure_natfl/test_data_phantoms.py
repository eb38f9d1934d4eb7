import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from protocols.errors import DataError
from secure_natfl.data.arrays import resize
from secure_natfl.data.phantoms import HOSPITALS, TARGETS, PhantomSource, chest_phantoms
from secure_natfl.data.records import Records
from secure_natfl.data.synthetic import FAMILIES, natural_images, noise_images


def probe(train: Records) -> LogisticRegression:
    model = make_pipeline(PCA(40, random_state=0), StandardScaler(), LogisticRegression(C=0.1))
    return model.fit(resize(train.images, 32).reshape(len(train), -1), train.labels)


def auroc(model: LogisticRegression, test: Records) -> float:
    scores = model.decision_function(resize(test.images, 32).reshape(len(test), -1))
    return float(roc_auc_score(test.labels, scores))


@pytest.fixture(scope="module")
def cohorts() -> dict[str, tuple[Records, Records]]:
    made = {name: PhantomSource(name, 700, 32, 0.5, seed=3).load() for name in HOSPITALS}
    return {
        name: (records.take(range(450)), records.take(range(450, 700)))
        for name, records in made.items()
    }


def test_the_class_can_be_learned_but_not_perfectly(
    cohorts: dict[str, tuple[Records, Records]],
) -> None:
    for train, test in cohorts.values():
        assert 0.75 < auroc(probe(train), test) < 0.98


def test_hospitals_mislead_one_another(cohorts: dict[str, tuple[Records, Records]]) -> None:
    children, county = cohorts["children"], cohorts["county"]
    model = probe(children[0])
    assert auroc(model, children[1]) - auroc(model, county[1]) > 0.15


def test_the_hospital_shows_in_the_image(cohorts: dict[str, tuple[Records, Records]]) -> None:
    means = [train.images.mean() for train, _ in cohorts.values()]
    spreads = [train.images.std(axis=(1, 2)).mean() for train, _ in cohorts.values()]
    assert max(means) - min(means) > 8
    assert max(spreads) - min(spreads) > 15


def test_records_of_a_hospital() -> None:
    records = PhantomSource("clinic", 400, 32, 0.2, seed=1).load()
    assert records.class_names == ("normal", "pneumonia")
    assert records.counts()["pneumonia"] == pytest.approx(80, abs=4)
    assert records.unit == "patient"
    assert 200 < records.patient_count < 330
    labels: dict[str, set[int]] = {}
    for patient, label in zip(records.patients, records.labels.tolist(), strict=True):
        labels.setdefault(patient, set()).add(label)
    assert all(len(values) == 1 for values in labels.values())


def test_images_of_one_patient_resemble_each_other_but_are_not_copies() -> None:
    records = PhantomSource("clinic", 300, 32, 0.0, seed=1).load()
    first = {patient: i for i, patient in reversed(list(enumerate(records.patients)))}
    pairs = [(first[p], i) for i, p in enumerate(records.patients) if first[p] != i]
    flat = records.images.reshape(300, -1).astype(float)
    flat -= flat.mean(axis=0)
    similarity = np.corrcoef(flat)
    assert np.mean([similarity[i, j] for i, j in pairs]) > similarity.mean() + 0.05
    assert max(similarity[i, j] for i, j in pairs) < 0.9999


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_label_skew_may_be_complete(rate: float) -> None:
    assert PhantomSource("intensive", 20, 16, rate, seed=0).load().one_class()


def test_seeds_decide_everything() -> None:
    first, again, other = (PhantomSource("county", 30, 24, 0.4, seed=s).load() for s in (1, 1, 2))
    assert np.array_equal(first.images, again.images)
    assert first.patients == again.patients
    assert not np.array_equal(first.images, other.images)
    naturals = [natural_images(30, 24, np.random.default_rng(s)).images for s in (1, 1, 2)]
    assert np.array_equal(naturals[0], naturals[1])
    assert not np.array_equal(naturals[0], naturals[2])


def test_impossible_requests_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match=r"no phantom hospital 'nowhere'.*children"):
        PhantomSource("nowhere", 10, 32, 0.5, 0).load()
    for n, size, rate in ((0, 32, 0.5), (5, 8, 0.5), (5, 32, 1.5), (5, 32, float("nan"))):
        with pytest.raises(DataError, match="cannot make"):
            chest_phantoms(n, size, HOSPITALS["clinic"], rate, rng)
    for make in (natural_images, noise_images):
        with pytest.raises(DataError, match="cannot make"):
            make(0, 32, rng)


def test_natural_images_are_balanced_and_full_of_contrast() -> None:
    records = natural_images(203, 48, np.random.default_rng(0))
    assert records.images.shape == (203, 48, 48)
    assert set(records.counts().values()) == {20, 21}
    assert tuple(records.counts()) == tuple(FAMILIES)
    assert records.images.std(axis=(1, 2)).min() > 15


@pytest.mark.parametrize("count", [1, 7])
def test_fewer_natural_images_than_families(count: int) -> None:
    assert len(natural_images(count, 16, np.random.default_rng(0))) == count


def test_natural_images_have_natural_spectra() -> None:
    """Mean amplitude falls as f^−s with s near 1, as in photographs; noise is flat."""
    rng = np.random.default_rng(0)

    def slope(images: Records) -> float:
        spectrum = np.abs(np.fft.rfft2(images.images.astype(float))).mean(axis=0)
        across, down = np.meshgrid(np.fft.rfftfreq(64), np.fft.fftfreq(64))
        frequency = np.hypot(across, down)
        band = (frequency > 0.03) & (frequency < 0.4)
        fit = np.polyfit(np.log(frequency[band]), np.log(spectrum[band]), 1)
        return -float(fit[0])

    assert 0.7 < slope(natural_images(300, 64, rng)) < 1.4
    assert abs(slope(noise_images(300, 64, rng))) < 0.1


def test_families_can_be_told_apart_by_their_spectra() -> None:
    records = natural_images(700, 32, np.random.default_rng(0))
    spectra = np.log(np.abs(np.fft.rfft2(records.images / 255.0)) + 0.1).reshape(700, -1)
    model = make_pipeline(PCA(30, random_state=0), StandardScaler(), LogisticRegression(C=0.1))
    model.fit(spectra[:500], records.labels[:500])
    assert model.score(spectra[500:], records.labels[500:]) > 0.45


def test_noise_images_hold_no_structure() -> None:
    images = noise_images(50, 32, np.random.default_rng(0)).images / 255.0
    assert images.mean() == pytest.approx(0.5, abs=0.01)
    neighbours = np.corrcoef(images[:, :, 1:].ravel(), images[:, :, :-1].ravel())[0, 1]
    assert abs(neighbours) < 0.02


def test_images_are_the_same_whatever_they_are_labelled_with() -> None:
    by = {t: PhantomSource("children", 90, 32, 0.5, 3, t).load() for t in TARGETS}
    healthy = by["labels"].labels == 0
    for target, records in by.items():
        np.testing.assert_array_equal(records.images, by["labels"].images)
        assert records.patients == by["labels"].patients
        assert records.class_names == TARGETS[target]
    assert ((by["pattern"].labels == 0) == healthy).all()
    assert set(by["pattern"].labels.tolist()) == {0, 1, 2, 3}
    assert 0 < by["view"].labels.mean() < 1


def test_lungs_are_dark_and_where_lungs_are() -> None:
    records = PhantomSource("clinic", 60, 64, 0.5, 0, "mask").load()
    assert records.form == "mask"
    lungs = records.labels == 1
    assert 0.1 < lungs.mean() < 0.5
    pairs = zip(records.images, lungs, strict=True)
    inside = np.array([image[mask].mean() for image, mask in pairs])
    spine = records.images[:, 10:50, 30:34].mean((1, 2))
    assert (inside < spine).mean() > 0.9
    # Hardly any at the upper and lower border, and something on both sides of the chest.
    assert lungs[:, :4].mean() < 0.1 * lungs.mean()
    assert lungs[:, -4:].mean() < 0.1 * lungs.mean()
    assert lungs[:, :, :32].any((1, 2)).all()
    assert lungs[:, :, 32:].any((1, 2)).all()
