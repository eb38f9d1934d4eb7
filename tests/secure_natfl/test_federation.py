"""Sites, classes, public images and scores of a federation."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import roc_auc_score

from protocols.errors import ConfigError, DataError, ModelError
from secure_natfl.config import PackHospital
from secure_natfl.data.arrays import to_float
from secure_natfl.data.records import Records
from secure_natfl.evaluation import (
    hospital_tests,
    predict,
    quick_auroc,
    scores,
    site_test,
)
from secure_natfl.federation import build, class_shares, examples, joined
from secure_natfl.progress import Stages
from secure_natfl.setup import check_architectures, public_networks
from tests.secure_natfl.packs import NAMES, hospital, pack
from tests.secure_natfl.packs import federate as federate


def test_sites_hold_disjoint_patients_in_training_and_test(world):
    seen: dict[str, str] = {}
    for site in world.sites:
        for part, patients in (("train", site.train_patients), ("test", site.test_patients)):
            for patient in set(patients):
                assert seen.setdefault(patient, f"{site.name} {part}") == f"{site.name} {part}"
    assert len(set(seen.values())) == 6
    total = sum(len(site.train) + len(site.test) for site in world.sites)
    assert total == world.config.data.hospitals[0].images
    for site in world.sites:
        assert len(site.train_patients) == len(site.train)
        assert len(site.test_patients) == len(site.test)
        assert site.patients == len(set(site.train_patients))


def test_a_site_takes_its_hospitals_networks_in_turn(world):
    assert [site.architecture for site in world.sites] == [
        "test_resnet",
        "test_efficientnet",
        "test_resnet",
    ]
    assert [site.name for site in world.sites] == ["children-1", "children-2", "children-3"]
    assert list(world.federation.hospitals) == ["children"]
    assert list(world.federation.groups) == ["all"]
    assert world.federation.unit == "patient"


def test_the_same_configuration_gives_the_same_federation(world):
    again = build(world.config, lambda name: b"k" * 32)
    assert again.proxy_digest == world.federation.proxy_digest
    for one, two in zip(world.sites, again.sites, strict=True):
        assert torch.equal(one.train.images, two.train.images)
        assert one.test_patients == two.test_patients


def test_a_site_says_nothing_private_in_its_repr(world):
    text = repr(world.sites[0]) + repr(world.federation)
    assert world.sites[0].train_patients[0] not in text
    assert "tensor" not in text


def test_a_patient_in_two_hospitals_is_refused(federate, tmp_path):
    pack(tmp_path / "a.npz", [0, 1] * 10)
    # The same file named twice: the same patients, in other parts.
    with pytest.raises(DataError, match=r"patient.*are in both"):
        federate(hospital("one", "a.npz"), hospital("two", "a.npz"))


def test_phantoms_of_one_look_are_the_same_patients(tiny):
    config = tiny()
    first = config.data.hospitals[0]
    second = first.model_copy(update={"name": "again"})
    data = config.data.model_copy(update={"hospitals": [first, second]})
    with pytest.raises(DataError, match="are in both"):
        build(config.model_copy(update={"data": data}), lambda name: b"k" * 32)


def test_class_lists_are_matched_by_name_and_differences_are_named(federate, tmp_path):
    pack(tmp_path / "a.npz", [0, 0, 0, 1] * 6, seed=1)
    pack(tmp_path / "b.npz", [0, 0, 0, 1] * 6, names=NAMES[::-1], seed=2)
    pack(tmp_path / "c.npz", [0, 1, 2] * 8, names=("normal", "pneumonia", "other"), seed=3)
    both = federate(hospital("a", "a.npz"), hospital("b", "b.npz"))
    assert both.task.classes == NAMES
    shares = [float(class_shares(site.train)[1]) for site in both.sites]
    assert shares[0] < 0.5 < shares[1]
    with pytest.raises(DataError, match=r"c: class list differs from that of a.*adds other"):
        federate(hospital("a", "a.npz"), hospital("c", "c.npz"))


def test_a_site_of_one_class_is_allowed(federate, tmp_path):
    pack(tmp_path / "a.npz", [0, 1] * 10, seed=1)
    pack(tmp_path / "b.npz", [1] * 20, seed=2)
    federation = federate(hospital("a", "a.npz"), hospital("b", "b.npz"))
    assert [site.one_class for site in federation.sites] == [False, True]
    assert federation.sites[1].train.targets.shape[1] == 2
    part = hospital_tests(federation)["b"]
    assert quick_auroc([np.full((len(part.examples), 2), 0.5)], part) is None


def test_one_patient_is_too_few_and_one_training_image_too(federate, tmp_path):
    pack(tmp_path / "a.npz", [0, 1] * 10, seed=1)
    pack(tmp_path / "one.npz", [0, 1, 1], clusters=[7, 7, 7], seed=2)
    pack(tmp_path / "two.npz", [0, 1], seed=3)
    with pytest.raises(DataError, match=r"one: 1 patient\(s\) cannot fill 2 parts"):
        federate(hospital("a", "a.npz"), hospital("one", "one.npz"))
    with pytest.raises(DataError, match="two: one training image is too few"):
        federate(hospital("a", "a.npz"), hospital("two", "two.npz"))
    with pytest.raises(DataError, match="cannot fill 5 parts"):
        federate(hospital("a", "a.npz"), hospital("two", "two.npz", sites=5))


def test_a_private_image_among_the_proxies_is_refused(federate, tmp_path):
    rng = np.random.default_rng(4)
    proxies = rng.integers(0, 256, (60, 32, 32), dtype=np.uint8)
    private = rng.integers(0, 256, (20, 32, 32), dtype=np.uint8)
    pack(tmp_path / "private.npz", [0, 1] * 10, images=private)
    pack(tmp_path / "clean.npz", list(range(10)) * 6, names="abcdefghij", images=proxies)
    tainted = proxies.copy()
    # Not the same bytes: a little darker, as a copy from elsewhere would be.
    tainted[41] = (private[5].astype(float) * 0.9).astype(np.uint8)
    pack(tmp_path / "tainted.npz", list(range(10)) * 6, names="abcdefghij", images=tainted)
    here = hospital("here", "private.npz")
    assert len(federate(here, kind="npz", path="clean.npz").naturals.images) == 60
    with pytest.raises(DataError, match=r"here: the proxy set overlaps .*proxy images 41 "):
        federate(here, kind="npz", path="tainted.npz")


def test_a_proxy_set_that_is_too_small_is_refused_with_the_number_that_works(federate, tmp_path):
    pack(tmp_path / "a.npz", [0, 1] * 10, seed=1)
    pack(tmp_path / "few.npz", list(range(10)) * 3, names="abcdefghij", seed=2)
    here = hospital("a", "a.npz")
    few = {"kind": "npz", "path": "few.npz"}
    with pytest.raises(DataError, match=r"per_round: 3 rounds × 20 .* the 30 .*lower it to 10"):
        federate(here, rounds=3, **few)
    assert len(federate(here, rounds=3, per_round=10, **few).natural_records) == 30


def test_proxies_need_labels_of_two_classes(federate, tmp_path):
    pack(tmp_path / "a.npz", [0, 1] * 10, seed=1)
    pack(tmp_path / "same.npz", [3] * 60, names="abcdefghij", seed=2)
    with pytest.raises(DataError, match=r"proxies: .*two classes"):
        federate(hospital("a", "a.npz"), kind="npz", path="same.npz")


def test_a_larger_proxy_set_is_cut_to_what_was_asked_for(federate, tmp_path):
    pack(tmp_path / "a.npz", [0, 1] * 10, seed=1)
    pack(tmp_path / "many.npz", list(range(10)) * 20, names="abcdefghij", seed=2)
    one, two = (federate(hospital("a", "a.npz"), kind="npz", path="many.npz") for _ in range(2))
    assert len(one.natural_records) == len(one.naturals.images) == 60
    assert one.proxy_digest == two.proxy_digest
    assert one.task.natural_classes == 10


def test_the_weakest_unit_is_the_federations(federate, tmp_path):
    pack(tmp_path / "a.npz", [0, 1] * 10, seed=1)
    pack(tmp_path / "b.npz", [0, 1] * 10, seed=2)
    both = [hospital(name, f"{name}.npz", unit="patient") for name in "ab"]
    assert federate(*both).unit == "patient"
    assert federate(both[0], both[1] | {"unit": "image"}).unit == "image"
    assert PackHospital.model_fields["unit"].default == "image"


def test_groups_are_those_of_the_configuration(federate, tmp_path):
    for seed, name in enumerate("abc"):
        pack(tmp_path / f"{name}.npz", [0, 1] * 10, seed=seed)
    federation = federate(
        hospital("a", "a.npz", group="old"),
        hospital("b", "b.npz", group="young"),
        hospital("c", "c.npz", group="old", sites=2),
    )
    found = {group: [site.name for site in sites] for group, sites in federation.groups.items()}
    assert found == {"old": ["a", "c-1", "c-2"], "young": ["b"]}
    assert [site.name for site in federation.hospitals["c"]] == ["c-1", "c-2"]


def test_labels_become_targets_and_unknown_ones_are_masked():
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40), dtype=np.uint8)
    single = Records(images, np.array([2, 0, 1]), ("a", "b", "c"), ("p",) * 3, "patient", "x")
    found = examples(single, 32)
    assert torch.equal(found.targets, torch.eye(3)[[2, 0, 1]])
    assert (found.known == 1).all()
    np.testing.assert_array_equal(found.images.numpy(), to_float(images, 32))
    multi = Records(
        images, np.array([[1, -1], [0, 1], [-1, -1]]), ("a", "b"), ("p",) * 3, "patient", "x"
    )
    found = examples(multi, 32)
    assert found.targets.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert found.known.tolist() == [[1, 0], [1, 1], [0, 0]]
    assert class_shares(found).tolist() == [0.5, 1.0]
    both = joined([found, found])
    assert len(both) == 6
    assert both.multi_label


# Scores


def test_a_hospitals_test_part_is_that_of_all_its_sites(world):
    part = hospital_tests(world.federation)["children"]
    assert len(part.examples) == sum(len(site.test) for site in world.sites)
    assert part.truth.patients == tuple(p for site in world.sites for p in site.test_patients)
    assert len(site_test(world.sites[1]).examples) == len(world.sites[1].test)


def test_predictions_are_probabilities_of_the_asked_head(world, multi_label):
    part = site_test(world.sites[0])
    network = world.network("test_resnet", "predict", groups=2)
    first, second = (predict(network, part, head) for head in (0, 1))
    assert first.shape == (len(part.examples), 2)
    np.testing.assert_allclose(first.sum(1), 1)
    assert not np.allclose(first, second)
    with torch.no_grad():
        expected = network(part.examples.images)[0][:, 1].double().softmax(-1)
    np.testing.assert_allclose(second, expected.numpy(), atol=1e-6)
    truth = part.examples.targets[:, 1].numpy()
    assert quick_auroc([first], part) == pytest.approx(roc_auc_score(truth, first[:, 1]))
    assert scores([first], part).auroc.value == pytest.approx(quick_auroc([first], part))

    findings = site_test(multi_label.sites[0])
    found = predict(multi_label.network("test_resnet", "predict"), findings)
    assert ((found > 0) & (found < 1)).all()
    assert np.abs(found.sum(1) - 1).max() > 0.01


# Before any image is read


def test_architectures_are_checked_before_any_work(tiny):
    check_architectures(tiny())
    with pytest.raises(ModelError, match="did you mean 'test_resnet'"):
        check_architectures(tiny("models.central=test_resnett"))
    config = tiny()
    wrong = config.data.hospitals[0].model_copy(update={"architectures": ["test_resnet", "nope"]})
    data = config.data.model_copy(update={"hospitals": [wrong]})
    with pytest.raises(ModelError, match="nope"):
        check_architectures(config.model_copy(update={"data": data}))


def test_every_party_gets_its_architectures_public_start(world):
    stages = Stages(Console(file=io.StringIO()))
    networks = public_networks(world.config, world.federation, stages)
    assert set(networks) == {"test_resnet", "test_efficientnet"}
    # The second time it comes from the cache: the same network.
    for name, network in networks.items():
        weights = zip(network.parameters(), world.networks[name].parameters(), strict=True)
        assert all(torch.equal(one, two) for one, two in weights if one.shape[0] != 2)
    assert stages.seconds["Public pre-training"] > 0


def test_stages_add_up_and_say_what_they_did():
    out = io.StringIO()
    stages = Stages(Console(file=out))
    for detail in ("first", "second"):
        with stages.stage("Work", detail) as advance:
            advance(1, 2)
    assert list(stages.seconds) == ["Work"]
    assert "Work first" in out.getvalue()
    assert "Work second" in out.getvalue()


def test_a_dicom_hospital_needs_one_source_of_labels(federate):
    table = {"name": "d", "kind": "dicom", "path": "x", "architectures": ["test_resnet"]}
    for extra in ({}, {"manifest": "m.csv", "label_tag": "BodyPartExamined"}):
        with pytest.raises(DataError, match=r"data\.hospitals\.d: .*either manifest or label_tag"):
            federate(table | extra)
    with pytest.raises(ConfigError, match="unknown key"):
        federate(table | {"source": "x"})
