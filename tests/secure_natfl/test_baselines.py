import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from protocols.mechanisms import ShardTeachers
from secure_natfl import baselines
from secure_natfl.protection import Protection
from secure_natfl.training import logits_of


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def with_other_images(world, changed):
    """The federation with the training images of some sites negated."""
    sites = tuple(
        dataclasses.replace(site, train=dataclasses.replace(site.train, images=-site.train.images))
        if number in changed
        else site
        for number, site in enumerate(world.sites)
    )
    return dataclasses.replace(world.federation, sites=sites)


def local(world, federation, number=0):
    site = federation.sites[number]
    public = world.networks[site.architecture]
    return baselines.local_only(world.config, federation, site, public, world.seeds)


def pooled(world, federation):
    public = world.networks["test_resnet"]
    return baselines.pooled(world.config, federation, public, world.seeds)


def test_a_local_model_sees_its_own_images_alone(world):
    base = state(local(world, world.federation))
    assert same(base, state(local(world, with_other_images(world, {1, 2}))))
    assert not same(base, state(local(world, with_other_images(world, {0}))))


def test_the_upper_bound_sees_everybodys_images(world):
    base = state(pooled(world, world.federation))
    assert same(base, state(pooled(world, world.federation)))
    for number in range(3):
        assert not same(base, state(pooled(world, with_other_images(world, {number}))))


def test_baselines_are_no_part_of_the_system(world, tiny):
    """No weight, and nothing of natural supervision or alignment, is in the local baseline."""
    base = state(local(world, world.federation))
    config = tiny("system.natural_weight=0", "system.alignment_weight=0", "system.beta=class")
    site = world.sites[0]
    public = world.networks[site.architecture]
    other = baselines.local_only(config, world.federation, site, public, world.seeds)
    assert same(base, state(other))


def test_a_baseline_has_as_many_epochs_as_a_personal_model(world, tiny):
    """One round of two epochs is as much training as two rounds of one."""
    site = world.sites[0]
    public = world.networks[site.architecture]
    models = [
        state(baselines.local_only(tiny(*changes), world.federation, site, public, world.seeds))
        for changes in (
            ("system.rounds=2", "system.local_epochs=1"),
            ("system.rounds=1", "system.local_epochs=2"),
            ("system.rounds=1", "system.local_epochs=1"),
        )
    ]
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


@pytest.fixture(scope="module")
def locals_(world):
    return {
        site.name: world.network(site.architecture, f"local {site.name}") for site in world.sites
    }


def student(world, locals_, config=None):
    return baselines.plain_mean(
        config or world.config,
        world.federation,
        locals_,
        world.networks["test_resnet"],
        world.rows,
        world.seeds,
    )


def test_the_plain_mean_is_a_mean_of_all_local_answers(world, locals_, tiny):
    base = state(student(world, locals_))
    # Every site counts, and none more than another: only the sum of the answers matters.
    by_one, by_all = copy.deepcopy(locals_), copy.deepcopy(locals_)
    with torch.no_grad():
        by_one["children-1"].xray.bias += torch.tensor([6.0, -6.0])
        for network in by_all.values():
            network.xray.bias += torch.tensor([2.0, -2.0])
    one, two = student(world, by_one), student(world, by_all)
    assert not same(base, state(one))
    images = world.federation.naturals.images
    torch.testing.assert_close(logits_of(one, images), logits_of(two, images), atol=0.02, rtol=0.02)
    # No part of the system's weights enters.
    other = tiny("system.beta=class", "system.alpha=equal", "system.heads=single")
    assert same(base, state(student(world, locals_, other)))


def test_the_noise_control_asks_about_images_without_content(world, terms, tmp_path):
    system = world.system()
    asked = []
    speak = system.speak

    def watched(speaking, rows, round_number, returned, images=None, begin=None):
        asked.append((len(rows), images))
        return speak(speaking, rows, round_number, returned, images, begin)

    system.speak = watched
    made = [
        baselines.noise_proxies(
            world.config, system, terms, world.speaking, world.networks["test_resnet"], world.seeds
        )
        for _ in range(2)
    ]
    assert same(state(made[0]), state(made[1])), "a seeded control is repeatable"
    assert made[0].groups == len(system.heads)
    assert len(asked) == 6
    for count, images in asked:
        assert count == 80, "as many as the run asks in all its rounds"
        assert images.shape == (80, 1, 32, 32)
        # Uniform grey values: flat spectrum, mean of the middle, deviation 2/√3 of its scale.
        assert float(images.mean()) == pytest.approx(0, abs=0.02)
        assert float(images.std()) == pytest.approx(2 / math.sqrt(3), abs=0.02)
        left, right = images[..., :-1].flatten(), images[..., 1:].flatten()
        assert abs(float(torch.corrcoef(torch.stack([left, right]))[0, 1])) < 0.02


def test_a_simulated_sum_is_what_the_protocol_would_have_opened(world, tiny, tmp_path):
    """Without noise, bit for bit; nothing is charged to any ledger for the simulation."""
    config = tiny("privacy.mechanism=none", "privacy.speaking=shards", "aggregation.kind=plain")
    system, terms = world.system(config), world.agree(config)
    answers = {name: system.speak(one, world.rows, 0, None) for name, one in world.speaking.items()}
    simulated = baselines._simulated_sum(system, terms, answers, world.rows, world.seeds)
    with Protection(
        config, world.federation, terms, world.layout(config), "s" * 32, tmp_path, world.seeds
    ) as protection:
        given = {name: system.weighted(one, world.rows) for name, one in answers.items()}
        _, sums = protection.play(0, world.rows, given)
        lines = [len(ledger.lines()) for ledger in protection.ledgers.values()]
    np.testing.assert_array_equal(simulated, sums["all"])
    assert lines == [1, 1, 1]


def test_the_control_has_the_noise_of_the_run(world, terms):
    system = world.system()
    answers = {name: system.speak(one, world.rows, 0, None) for name, one in world.speaking.items()}
    silent = dataclasses.replace(
        terms, mechanisms={name: _Silent(m) for name, m in terms.mechanisms.items()}
    )
    noisy, clean = (
        baselines._simulated_sum(system, each, answers, world.rows, world.seeds)
        for each in (terms, silent)
    )
    found = float(np.sqrt(np.square(noisy - clean).mean()))
    assert found == pytest.approx(terms.noise["all"], rel=0.25)


class _Silent:
    """A mechanism's clip and grid without its noise."""

    def __init__(self, mechanism):
        assert isinstance(mechanism, ShardTeachers)
        self.total, self.step = mechanism.total, mechanism.step


def test_every_baseline_is_named_for_people():
    assert set(baselines.LABELS) == {"local_only", "pooled", "plain_mean", "noise_proxies"}
    assert all(title and text for title, text in baselines.LABELS.values())
