"""Parts of NatImg-FL: weights, heads, the way down, and what each changes that is switched off."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from secure_natfl.federation import Site
from secure_natfl.fine_tuning import fresh
from secure_natfl.systems.natimg_fl import NatImgFL, Released
from secure_natfl.training import answers_of
from tests.secure_natfl.tensors import draw, same, state

# α and heads


def sized(world, sizes, groups=None):
    """The federation with sites of these numbers of patients."""
    groups = groups or ["all"] * len(sizes)

    class Sized(Site):
        @property
        def patients(self):
            return sizes[self.name]

    sites = tuple(
        Sized(**{f.name: getattr(site, f.name) for f in dataclasses.fields(site)} | {"group": g})
        for site, g in zip(world.sites, groups, strict=True)
    )
    sizes = dict(zip((site.name for site in sites), sizes, strict=True))
    return dataclasses.replace(world.federation, sites=sites)


def test_alpha_is_the_size_against_the_smallest_of_the_group_and_capped(world, tiny):
    def weights(federation, *changes):
        return list(NatImgFL(tiny(*changes), federation, world.seeds).weights().values())

    federation = sized(world, [20, 45, 900])
    assert weights(federation) == [1, 2, 4]
    assert weights(federation, "system.alpha_max=16") == [1, 2, 16]
    assert weights(federation, "system.alpha=equal") == [1, 1, 1]
    grouped = sized(world, [20, 45, 900], ["a", "b", "b"])
    assert weights(grouped, "system.alpha_max=16") == [1, 1, 16]
    assert weights(grouped, "system.alpha_max=16", "system.heads=single") == [1, 2, 16]


def test_each_group_has_an_aggregate_and_a_head_or_all_share_one(world, tiny):
    federation = sized(world, [20, 20, 20], ["young", "old", "young"])
    apart = NatImgFL(tiny(), federation, world.seeds)
    joined = NatImgFL(tiny("system.heads=single"), federation, world.seeds)
    assert apart.heads == ["young", "old"]
    assert [apart.group_of(site) for site in federation.sites] == ["young", "old", "young"]
    assert joined.heads == ["all"]
    assert {joined.group_of(site) for site in federation.sites} == {"all"}
    central = world.network("test_resnet", "central", groups=2)
    answers = [apart.returned(central, world.rows, group).logits for group in apart.heads]
    assert answers[0].shape == (40, 2)
    assert not torch.equal(*answers)


# Downwards


def test_the_downward_weight_is_the_reliability_of_server_against_site(world, tiny):
    system = world.system()
    central, personal = (world.network("test_resnet", name) for name in ("central", "own"))
    with torch.no_grad():
        personal.natural.bias += 3 * draw(10)
    found = system._downward(personal, central, world.rows)
    naturals = world.federation.naturals
    reliability = []
    for network in (central, personal):
        logits = answers_of(network, naturals.images[world.rows])[1].double()
        label = logits.softmax(-1)[torch.arange(40), naturals.labels[world.rows]]
        reliability.append(label.sqrt())
    expected = reliability[0] / (reliability[0] + reliability[1])
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    assert found.min() > 0
    assert found.max() < 1
    assert found.std() > 0.01
    half = world.system(tiny("system.downward=constant"))._downward(personal, central, world.rows)
    assert (half == 0.5).all()
    off = world.system(tiny("system.downward=off"))._downward(personal, central, world.rows)
    assert off is None


# Ablations: every part, switched off, changes what it is a part of


def contributed(world, config, returned=True):
    site = world.sites[0]
    given = world.returned() if returned else None
    return world.system(config).contribute(world.speaking[site.name], world.rows, 1, given)


@pytest.fixture(scope="module")
def spoken(world, tiny):
    return contributed(world, tiny())


@pytest.mark.parametrize(
    "change",
    [
        "system.natural_weight=0",
        "system.alignment_weight=0",
        "system.distillation_weight=0",
        "system.beta=uniform",
        "system.beta=entropy",
        "system.beta=class",
        "system.head_steps=9",
        "system.temperature=4",
    ],
)
def test_each_upward_part_changes_a_contribution(world, tiny, spoken, change):
    found = contributed(world, tiny(change))
    assert np.isfinite(found).all()
    assert found.shape != spoken.shape or not np.array_equal(found, spoken)
    if "beta" in change:
        return
    # What the other parts say is a training of its own, not another order of the same numbers.
    assert np.abs(found - spoken).max() > 1e-4


def test_all_parts_off_leaves_plain_supervision(world, tiny, spoken):
    config = tiny(
        "system.natural_weight=0",
        "system.alignment_weight=0",
        "system.distillation_weight=0",
        "system.beta=uniform",
        "system.alpha=equal",
        "system.downward=off",
        "system.heads=single",
    )
    found = contributed(world, config)
    assert np.isfinite(found).all()
    assert np.array_equal(found, contributed(world, config, returned=False))
    assert not np.array_equal(spoken, contributed(world, tiny(), returned=False))


def personalised(world, config, teacher=0):
    system, site = world.system(config), world.sites[0]
    personal = world.network(site.architecture, "personal")
    central = world.network("test_resnet", f"central {teacher}")
    with torch.no_grad():
        central.xray.bias += torch.tensor([3.0, -3.0])
        central.natural.bias += 3 * draw(10)
    returned = system.returned(central, world.rows, "all")
    system.personalise(personal, site, central, returned, 0)
    return state(personal)


@pytest.fixture(scope="module")
def personal(world, tiny):
    return personalised(world, tiny())


@pytest.mark.parametrize(
    "change",
    [
        "system.natural_weight=0",
        "system.alignment_weight=0",
        "system.distillation_weight=0",
        "system.downward=off",
        "system.downward=constant",
        "system.local_epochs=2",
    ],
)
def test_each_downward_part_changes_a_personal_model(world, tiny, personal, change):
    found = personalised(world, tiny(change))
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
    assert not same(personal, found)


def test_off_is_off(world, tiny, personal):
    """Without distillation nothing of the server's answers reaches a personal model."""
    assert not same(personal, personalised(world, tiny(), teacher=1))
    for change in ("system.distillation_weight=0", "system.downward=off"):
        one, other = (personalised(world, tiny(change), teacher) for teacher in (0, 1))
        assert same(one, other)


def test_the_natural_weight_changes_the_central_model(world, tiny):
    def absorbed(change):
        system = world.system(tiny(change))
        central = world.network("test_resnet", "central")
        released = Released(
            world.rows, {"all": draw(40, 2)}, {"all": torch.ones(40)}, {"all": math.inf}
        )
        value = system.absorb(central, released, 0)
        assert math.isfinite(value)
        return state(central)

    base = absorbed("system.natural_weight=1")
    assert same(base, absorbed("system.natural_weight=1"))
    assert not same(base, absorbed("system.natural_weight=0"))
    assert not same(base, absorbed("system.distill_epochs=2"))


def test_a_fine_tuned_network_can_speak_where_no_noise_is_asked(world, tiny):
    config = tiny("privacy.mechanism=none")
    site, system = world.sites[0], world.system(config)
    speaking = world.speaking_of(site, config)
    assert speaking.shards is None
    first = system.contribute(speaking, world.rows, 0, None)
    assert first.shape == (1, system.layout(40).size)
    torch.manual_seed(77)
    assert np.array_equal(first, system.contribute(speaking, world.rows, 0, None))
    assert not np.array_equal(first, system.contribute(speaking, world.rows, 0, world.returned()))
    with_shards = tiny("privacy.mechanism=none", "privacy.speaking=shards")
    assert world.speaking_of(site, with_shards).shards.features.shape[0] == 5


def test_the_central_model_answers_as_the_mean_of_the_sites_heads(world, tiny):
    """Linear heads on one public network carry over, from known features as from images."""
    config = tiny("privacy.mechanism=none", "privacy.speaking=head", "system.beta=uniform")
    system = world.system(config)
    speaking = {site.name: world.speaking_of(site, config) for site in world.sites}
    backbone = next(iter(speaking.values())).backbone
    answers = {n: system.speak(s, world.rows, 0, None).xray[0] for n, s in speaking.items()}
    mean = torch.stack(list(answers.values())).mean(0)
    mean = mean - mean.mean(-1, keepdim=True)
    released = Released(world.rows, {"all": mean}, {"all": torch.ones(40)}, {"all": math.inf})
    found = []
    for known in (False, True):
        if known:
            system.recall(backbone)
        central = fresh(backbone.network, 2, world.seeds.torch("central"))
        system.absorb(central, released, 0)
        found.append(system.returned(central, world.rows, "all").logits)
        images = world.federation.naturals.images[world.rows]
        torch.testing.assert_close(answers_of(central, images)[0][:, 0], mean, atol=0.05, rtol=0.05)
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)
