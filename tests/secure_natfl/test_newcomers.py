"""A hospital that took no part: its own few labels decide what the central model's heads mean."""

import json

import numpy as np
import pytest
import tomli_w
import torch
from rich.console import Console
from torch import nn

from protocols.errors import DataError, NatflError, RunFolderError
from secure_natfl.models import Network, build_backbone
from secure_natfl.newcomer_fit import fit
from secure_natfl.newcomers import fit_newcomer
from secure_natfl.run_folder import load_network, save_network
from secure_natfl.study.newcomers import drawn
from secure_natfl.training import Examples, logits_of

WIDTH = 12


@pytest.fixture
def world():
    """A central model whose one head tells a direction that 200 images of a newcomer reverse."""
    generator = torch.Generator().manual_seed(3)
    central = Network(nn.Flatten(), WIDTH, 2, 4)
    with torch.no_grad():
        told = torch.randn(WIDTH, generator=generator)
        central.xray.weight.copy_(torch.stack([-told, told]))
        central.xray.bias.copy_(torch.tensor([-3.0, 3.0]))
    images = torch.randn(200, 1, 1, WIDTH, generator=generator)
    labels = (images.flatten(1) @ told < 0).long()
    targets = nn.functional.one_hot(labels, 2).float()
    naturals = torch.randn(300, WIDTH, generator=generator)
    return central, naturals, Examples(images, targets, torch.ones(200, 2), multi_label=False)


def right(network: Network, examples: Examples) -> float:
    said = logits_of(network, examples.images)[:, 0].argmax(1)
    return float((said == examples.targets.argmax(1)).float().mean())


def test_a_head_that_ranks_in_reverse_is_turned_round(world):
    central, naturals, newcomer = world
    labelled = newcomer.at(torch.arange(20))
    patients = [f"p{i // 2}" for i in range(20)]
    assert right(central, newcomer) < 0.45
    fitted = fit_newcomer(central, naturals, labelled, patients)
    alone = fit_newcomer(central, naturals, labelled, patients, heads=False)
    rest = newcomer.at(torch.arange(20, 200))
    assert right(fitted.network, rest) > 0.9
    assert right(fitted.network, rest) > right(alone.network, rest) + 0.05
    assert fitted.losses[0] < alone.losses[0] < np.log(2)
    assert alone.trusts == (0.0,)
    assert fitted.trusts[0] > 0


def test_labels_of_images_that_are_not_known_do_not_count(world):
    central, naturals, newcomer = world
    labelled = newcomer.at(torch.arange(30))
    wrong = labelled.targets.clone()
    wrong[20:] = 1 - wrong[20:]
    known = labelled.known.clone()
    known[20:] = 0
    patients = [f"p{i // 2}" for i in range(30)]
    one, other = (
        fit_newcomer(
            central,
            naturals,
            Examples(labelled.images, targets, known, multi_label=False),
            patients,
        )
        for targets in (labelled.targets, wrong)
    )
    assert torch.equal(one.network.xray.weight, other.network.xray.weight)


def test_every_class_of_a_multi_label_task_is_fitted(world):
    _, naturals, newcomer = world
    central = Network(nn.Flatten(), WIDTH, 3, 4, groups=2)
    generator = torch.Generator().manual_seed(4)
    targets = (torch.randn(200, 3, generator=generator) > 0).float()
    targets[:, 2] = newcomer.targets[:, 1]
    every = Examples(newcomer.images, targets, torch.ones(200, 3), multi_label=True)
    patients = [f"p{i // 4}" for i in range(40)]
    labelled = every.at(torch.arange(40))
    fitted = fit_newcomer(central, naturals, labelled, patients)
    assert len(fitted.losses) == len(fitted.trusts) == 3
    said = logits_of(fitted.network, newcomer.images)[40:, 0, 2] > 0
    assert float((said == (targets[40:, 2] > 0)).float().mean()) > 0.8


def test_one_patient_of_a_kind_is_too_few(world):
    central, naturals, newcomer = world
    shown = torch.nonzero(newcomer.targets[:, 1])[:6, 0]
    labelled = newcomer.at(torch.cat([shown, torch.nonzero(newcomer.targets[:, 0])[:2, 0]]))
    patients = ["a", "b", "c", "d", "e", "f", "g", "g"]
    with pytest.raises(DataError, match="fewer than two labelled patients do not show class 2"):
        fit_newcomer(central, naturals, labelled, patients)


def test_a_newcomer_labels_whole_patients_of_both_kinds():
    patients = np.array([f"p{i // 3}" for i in range(60)])
    shown = np.stack([np.arange(60) < 54, np.arange(60) >= 54], 1)
    for seed in range(5):
        rows = drawn(shown, patients, np.random.default_rng(seed))
        chosen = set(patients[rows])
        assert len(rows) == 21 == 3 * len(chosen)
        assert sorted(rows) == np.flatnonzero(np.isin(patients, list(chosen))).tolist()
        assert (shown[rows, 1]).sum() >= 3
    none = np.stack([np.ones(60, bool), np.zeros(60, bool)], 1)
    with pytest.raises(DataError, match="3 of every class"):
        drawn(none, patients, np.random.default_rng(0), "late")


HOSPITAL = """
[data]
root = "."
[[data.hospitals]]
name = "late"
kind = "phantom"
hospital = "county"
images = 24
"""


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """What a finished run leaves for a newcomer: its configuration and the last central model."""
    config, run = tiny(), tmp_path_factory.mktemp("run")
    (run / "config.toml").write_text(tomli_w.dumps(config.model_dump(mode="json")))
    torch.manual_seed(0)
    backbone, width = build_backbone(config.models.central, config.data.size)
    central = Network(backbone, width, 2, 10, groups=2)
    for number in range(config.system.rounds):
        step = run / "state" / f"round-{number:03d}"
        step.mkdir(parents=True)
        save_network(central, step / "central.safetensors")
    (run / "late.toml").write_text(HOSPITAL)
    return run, central


def test_a_finished_run_is_fitted_to_a_few_labelled_images(finished, tmp_path):
    run, central = finished
    said = Console(record=True)
    out = fit(run, str(run / "late.toml"), tmp_path / "fitted", said)
    network = Network(central.backbone, central.features, 2, 10)
    load_network(network, out)
    assert "24 labelled images" in said.export_text()
    stated = json.loads((tmp_path / "fitted" / "fit.json").read_text())
    assert stated["classes"] == ["normal", "pneumonia"]
    assert stated["held_back_log_losses"][0] > 0
    assert stated["trust_in_heads"][0] > 0
    with pytest.raises(RunFolderError, match="exists already"):
        fit(run, str(run / "late.toml"), tmp_path / "fitted", said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[data]\nroot = '.'", "not one hospital"),
        (HOSPITAL + "[privacy]\nepsilon = 1.0", "unknown key"),
        (HOSPITAL.replace("phantom", "phantm"), "kind"),
        (HOSPITAL.replace("24", "3"), "fewer than two labelled patients"),
    ],
)
def test_what_a_newcomer_gets_wrong_is_one_sentence(finished, tmp_path, text, said):
    (tmp_path / "late.toml").write_text(text)
    with pytest.raises(NatflError, match=said):
        fit(finished[0], str(tmp_path / "late.toml"), tmp_path / "fitted", Console(quiet=True))


def test_a_run_that_is_not_finished_has_nothing_to_fit(tiny, tmp_path):
    with pytest.raises(RunFolderError, match=r"config\.toml"):
        fit(tmp_path, "late.toml", tmp_path / "out", Console(quiet=True))
    (tmp_path / "config.toml").write_text(tomli_w.dumps(tiny().model_dump(mode="json")))
    (tmp_path / "late.toml").write_text(HOSPITAL)
    with pytest.raises(RunFolderError, match="0 of 2 rounds"):
        fit(tmp_path, str(tmp_path / "late.toml"), tmp_path / "out", Console(quiet=True))
