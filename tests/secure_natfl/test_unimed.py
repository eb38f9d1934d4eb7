import dataclasses
import hashlib
import io

import numpy as np
import pytest
import torch
from rich.console import Console

from protocols.errors import ConfigError, DataError, PrivacyError
from protocols.promises import PROMISES
from secure_natfl.federation import build
from secure_natfl.run_folder import RunFolder
from secure_natfl.seeds import Seeds
from secure_natfl.summed.run import SummedRun
from secure_natfl.systems.summed import Summed, make_system
from secure_natfl.toml_config import load

SMALL = (
    "run.seed=0",
    "system.local_epochs=1",
    "system.tune_epochs=1",
    "models.pretrain_epochs=1",
    "models.batch=16",
    "proxies.images=120",
    "proxies.per_round=40",
)


ONE = ("system.rounds=1", "system.joins.views=1")
"""A single stage, which all tasks join."""


def small(*changes):
    config = load("unimed-smoke", [*SMALL, *changes])
    hospitals = [h.model_copy(update={"images": 40}) for h in config.data.hospitals]
    return config.model_copy(
        update={"data": config.data.model_copy(update={"hospitals": hospitals})}
    )


@pytest.fixture(scope="module")
def federation():
    return build(small(), lambda hospital: hospital.encode().ljust(32, b"k"))


def made(federation, *changes):
    return make_system(small(*changes), federation, Seeds.of_study(0))


def site(system, name):
    return next(site for site in system.federation.sites if site.name == name)


def stage(system, number, *, personalise=True):
    """One stage with a plain sum; the vectors that were sent."""
    (phase,) = system.phases(number)
    sent = {
        name: system.contribute(site(system, name), number, phase.name, None)
        for name in system.cohort(number)
    }
    total = np.sum(list(sent.values()), axis=0)
    opened = Summed(total, float(len(sent)), tuple(sent), 0.0)
    system.absorb({"all": opened}, number, phase.name)
    if personalise:
        for one in system.federation.sites:
            system.personalise(one, number)
    return sent


def encoder_of(system):
    return torch.cat([p.detach().flatten() for p in system.shared.encoder.parameters()])


def fingerprint(vectors):
    return {name: hashlib.sha256(v.tobytes()).hexdigest() for name, v in vectors.items()}


def test_tasks_differ_in_head_and_form_and_only_the_encoder_is_sent(federation):
    system = made(federation)
    sent = stage(system, 0)
    heads = {name: head.out_features for name, head in system._heads.items()}
    assert heads == {"children": 2, "adults": 4, "lungs": 2 * 8 * 8}
    size = sum(p.numel() for p in system.shared.encoder.parameters())
    assert {vector.shape for vector in sent.values()} == {(size,)}
    named = {name for name, _ in system.shared.encoder.named_parameters()}
    assert {s.name for s in system.phases(0)[0].layout.segments} == named


def test_the_encoder_moves_by_the_mean_change(federation):
    system = made(federation)
    before = encoder_of(system)
    sent = stage(system, 0)
    public = {name for name in system.state() if not name.startswith("site/")}
    assert public == {f"shared/{name}" for name in system.shared.state_dict()}
    mean = torch.from_numpy(np.mean(list(sent.values()), axis=0)).float()
    assert mean.abs().max() > 1e-4
    torch.testing.assert_close(encoder_of(system), before + mean)


def test_the_server_moves_the_features_to_where_the_sites_mean_is(federation):
    system = made(
        federation,
        "system.merge=feature_distill",
        "system.distill_epochs=40",
        "system.masked_weight=0.0",
        "system.learning_rate=3e-3",
    )
    asked = [set(system.asked(number, "features").tolist()) for number in (0, 1)]
    assert [len(rows) for rows in asked] == [40, 40]
    assert not asked[0] & asked[1]
    images = federation.naturals.images[torch.from_numpy(system.asked(0, "features"))]
    with torch.no_grad():
        before = system.shared.encoder.eval()(images)
    sent = stage(system, 0)
    layout = system.phases(0)[0].layout
    change = layout.unpack(np.mean(list(sent.values()), axis=0))["features"]
    target = before + torch.from_numpy(change).float()
    with torch.no_grad():
        after = system.shared.encoder(images)
    assert (after - target).square().mean() < 0.5 * (before - target).square().mean()


@pytest.mark.parametrize("merge", ["param_avg", "feature_distill"])
def test_the_server_needs_no_site_and_no_label(federation, merge):
    system = made(federation, f"system.merge={merge}")
    stripped = dataclasses.replace(federation, sites=())
    server = type(system)(
        system.config,
        system.options,
        stripped,
        system.seeds,
        made(federation, f"system.merge={merge}").shared,
        system.pool,
    )
    sent = stage(system, 0, personalise=False)
    opened = Summed(np.sum(list(sent.values()), axis=0), float(len(sent)), tuple(sent), 0.0)
    server.absorb({"all": opened}, 0, system.phases(0)[0].name)
    assert torch.equal(encoder_of(server), encoder_of(system))


def test_what_is_sent_knows_nothing_of_personal_models(federation):
    """Personal models in every stage, by hand, and in none: the same is sent."""
    with_own, without = made(federation), made(federation)
    stage(with_own, 0, personalise=False)
    stage(without, 0, personalise=False)
    for one in federation.sites:
        assert with_own.personalise(one, 1) is not None
    assert set(with_own._own) == {"children", "adults", "lungs", "views"}
    assert fingerprint(stage(with_own, 1)) == fingerprint(stage(without, 1, personalise=False))


def test_a_task_joins_in_its_stage_and_one_that_never_does_is_tuned_all_the_same(federation):
    system = made(federation)
    assert system.cohort(0) == ("children", "adults", "lungs")
    assert system.cohort(1) == ("children", "adults", "lungs", "views")
    left_out, views = made(federation, "system.joins.views=0"), site(system, "views")
    assert left_out.cohort(1) == ("children", "adults", "lungs")
    assert left_out.personalise(views, 0) is None
    assert left_out.personalise(views, 1) is not None
    answer = left_out.answering(views)
    assert answer is left_out._own["views"]
    assert answer(federation.naturals.images[:3]).shape == (3, 2)


def test_a_run_that_is_taken_up_goes_on_alike(federation):
    system, other = made(federation), made(federation)
    stage(system, 0)
    other.restore({name: value.clone() for name, value in system.state().items()})
    assert fingerprint(stage(system, 1)) == fingerprint(stage(other, 1, personalise=False))
    other.restore(system.state())
    images = federation.naturals.images[:4]
    for one in federation.sites:
        with torch.no_grad():
            assert torch.equal(other.answering(one)(images), system.answering(one)(images))
    one = federation.sites[2]
    with torch.no_grad():
        assert torch.equal(other.central(one)(images), system.central(one)(images))


def test_an_anchor_shortens_what_is_sent(federation):
    plain, held = (
        made(federation, "system.local_epochs=8", *changes).contribute(
            federation.sites[0], 0, "encoder", None
        )
        for changes in ((), ("system.anchor=100.0",))
    )
    assert np.linalg.norm(held) < 0.7 * np.linalg.norm(plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("system.joins.nobody=1", "system.joins: no hospital is called nobody"),
        ("run.baselines=true", "no ViT for masks"),
        ("data.channels=3", "the encoder sees grey images"),
        ("privacy={mechanism='dp-sgd'}", "a head is never sent"),
        (
            "privacy={mechanism='dp-sgd', layers='last'}|system.anchor=1.0",
            "dp-sgd has its own local loss",
        ),
        ("models.central=test_vit", "is not the shared encoder .*only equal ones can be averaged"),
        ("system.participation=0.5", "0.5 of 3 sites are 2"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(federation, change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        made(federation, *change.split("|")).cohort(0)
    assert "\n" not in str(caught.value)


def test_a_pool_that_holds_a_private_image_is_refused(federation, tmp_path):
    images = federation.sites[0].records.images[:20]
    np.savez(
        tmp_path / "pool.npz",
        images=images,
        labels=np.arange(20) % 2,
        class_names=np.array(["a", "b"]),
    )
    pool = f"system.pool=[{{path='{tmp_path}/pool.npz', without=['a']}}]"
    with pytest.raises(DataError, match=r"children: the proxy set overlaps private images"):
        made(federation, pool)


def test_under_noise_nothing_is_trained_without_a_charge(federation):
    system = made(federation, "privacy={mechanism='dp-sgd', layers='last'}")
    with pytest.raises(PrivacyError, match="no charge for it"):
        system.contribute(federation.sites[0], 0, "encoder", None)


def played(config, path):
    folder = RunFolder.open(path, config, "", resume=False)
    return SummedRun(config, folder, Console(file=io.StringIO())).play()


def changes_to(mode):
    kind, custody = mode.split("/")
    unsafe = ["aggregation.unsafe=true"] if kind == "slots" else []
    return [f"aggregation.kind={kind}", f"aggregation.custody={custody}", *unsafe]


def digests(results):
    return [one["aggregate_sha256"] for one in results.rounds]


def test_a_whole_run_under_keys_opens_what_a_plain_one_does(tmp_path):
    plain = played(
        small(*ONE, "aggregation.kind=plain", "aggregation.custody=none"), tmp_path / "p"
    )
    keys = played(small(*ONE), tmp_path / "k")
    assert digests(plain) == digests(keys)
    assert plain.system.name == "unimed"


@pytest.mark.nightly
@pytest.mark.parametrize("merge", ["param_avg", "feature_distill"])
def test_every_aggregation_opens_the_same_sums(merge, tmp_path):
    found = {
        mode: digests(
            played(
                small(f"system.merge={merge}", *changes_to(mode)), tmp_path / mode.replace("/", "-")
            )
        )
        for mode in sorted(PROMISES)
    }
    assert len({str(one) for one in found.values()}) == 1


@pytest.mark.nightly
@pytest.mark.parametrize(
    "privacy",
    [
        "privacy={mechanism='dp-sgd', layers='last', steps=2, delta=0.01}",
        "privacy={mechanism='client-gaussian', clip=1.0, override=true, delta=0.01}",
    ],
)
def test_a_run_under_noise_states_what_it_spent(privacy, tmp_path):
    results = played(small(privacy, *ONE), tmp_path)
    assert results.rounds[0]["aggregate_sha256"]
