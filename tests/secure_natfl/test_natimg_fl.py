import dataclasses
import inspect
import math
import typing

import numpy as np
import pytest
import torch
from torch import nn

from protocols.errors import NatflError
from secure_natfl.dp_training import Cohort, Recipe
from secure_natfl.federation import Site
from secure_natfl.fine_tuning import fresh
from secure_natfl.heads import ShardBatch
from secure_natfl.systems import betas
from secure_natfl.systems.betas import BETAS, Answer
from secure_natfl.systems.natimg_fl import NatImgFL, Released, Returned
from secure_natfl.systems.private_head import PrivateHead
from secure_natfl.systems.speaking import PublicBackbone, Speaking
from secure_natfl.training import answers_of


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_answer(teachers=3, rows=40, classes=2, *, seed=0, multi_label=False, loud=1.0):
    shares = draw(teachers, classes, seed=seed + 1).softmax(-1)
    return Answer(
        loud * draw(teachers, rows, classes, seed=seed),
        loud * draw(teachers, rows, 10, seed=seed + 2),
        shares,
        multi_label,
    )


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# β


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("loud", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("family", ["entropy", "natural", "class"])
def test_beta_lies_between_0_and_1(family, loud, multi_label):
    answer = some_answer(classes=3, loud=loud, multi_label=multi_label)
    beta = BETAS[family](answer, torch.arange(40) % 10)
    assert beta.shape == ((3, 40, 3) if family == "class" else (3, 40, 1))
    assert torch.isfinite(beta).all()
    assert (beta >= 0).all()
    assert (beta <= 1).all()
    assert BETAS["uniform"] is None


def test_beta_of_the_entropy_is_what_certainty_remains():
    answer = some_answer(classes=3)
    found = betas.entropy(answer, torch.zeros(40, dtype=torch.long))
    p = answer.xray[1, 7].double().softmax(-1)
    literal = 1 - float(-(p * p.log()).sum()) / math.log(3)
    assert float(found[1, 7, 0]) == pytest.approx(literal, abs=1e-6)
    flat = dataclasses.replace(answer, xray=torch.zeros(1, 2, 3))
    assert betas.entropy(flat, torch.zeros(2)).abs().max() < 1e-6
    multi = dataclasses.replace(answer, multi_label=True)
    p = 1 / (1 + np.exp(-answer.xray[1, 7].double().numpy()))
    literal = 1 - np.mean(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))
    found = betas.entropy(multi, torch.zeros(40))
    assert float(found[1, 7, 0]) == pytest.approx(literal, abs=1e-6)


def test_beta_of_natural_images_is_the_root_of_the_labels_probability():
    answer, labels = some_answer(), torch.arange(40) % 10
    p = answer.natural.softmax(-1)
    found = betas.natural(answer, labels)
    for teacher in range(3):
        for row in (0, 13, 39):
            literal = math.sqrt(float(p[teacher, row, labels[row]]))
            assert float(found[teacher, row, 0]) == pytest.approx(literal, abs=1e-6)


def test_beta_of_a_class_is_its_share_among_a_teachers_records():
    answer = some_answer(classes=4)
    found = betas.by_class(answer, torch.zeros(40))
    assert torch.equal(found[2, 5], answer.shares[2])
    assert torch.equal(found[2, 5], found[2, 39])


# What is sent, and what is read


@pytest.mark.parametrize(
    ("beta", "columns"), [("uniform", None), ("natural", 1), ("entropy", 1), ("class", 2)]
)
def test_denominators_travel_only_where_answers_count_differently(world, tiny, beta, columns):
    system = world.system(tiny(f"system.beta={beta}"))
    layout = system.layout(40)
    shapes = {s.name: (s.rows, s.columns) for s in layout.segments}
    assert shapes.pop("numerators") == (40, 2)
    assert shapes == ({} if columns is None else {"denominators": (40, columns)})
    assert system.weighted(some_answer(), world.rows).shape == (3, layout.size)


def literal_mean(parts, beta, multi_label):
    """Σα·β·(z − z̄) / Σα·β, one number after the other."""
    (_, first), *_ = parts
    _, rows, classes = first.xray.shape
    found, weights = np.zeros((rows, classes)), np.zeros((rows, classes))
    for alpha, answer in parts:
        teachers = len(answer.xray)
        values = None if beta is None else beta(answer, torch.arange(rows) % 10)
        for m in range(teachers):
            for i in range(rows):
                z = answer.xray[m, i].double().numpy()
                if not multi_label:
                    z = z - z.mean()
                for c in range(classes):
                    b = 1.0 if values is None else float(values[m, i, min(c, values.shape[2] - 1)])
                    found[i, c] += alpha * b * z[c]
                    weights[i, c] += alpha * b
    return found, weights


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("family", ["uniform", "natural", "entropy", "class"])
def test_what_is_read_is_the_dually_weighted_mean(world, tiny, multi_label, family, monkeypatch):
    """Several sites with different α and numbers of teachers, without noise."""
    system = world.system(tiny(f"system.beta={family}"))
    labels = torch.arange(40) % 10
    naturals = dataclasses.replace(world.federation.naturals, labels=labels.repeat(3))
    system.federation = dataclasses.replace(world.federation, naturals=naturals)
    parts = [
        (alpha, some_answer(m, seed=10 * m, multi_label=multi_label))
        for alpha, m in ((1, 2), (3, 4), (2, 1))
    ]
    total = sum(alpha * system.weighted(answer, world.rows).sum(0) for alpha, answer in parts)
    teachers = float(sum(alpha * len(answer.xray) for alpha, answer in parts))
    found = system.read(world.rows, {"all": total}, {"all": teachers}, {"all": 0.0})
    sums, weights = literal_mean(parts, BETAS[family], multi_label)
    floor = np.maximum(weights, 0.25 * np.sort(weights, axis=0)[19])
    np.testing.assert_allclose(found.logits["all"].numpy(), sums / floor, atol=2e-5)
    assert found.signal_to_noise["all"] == math.inf
    if not multi_label and family != "class":
        np.testing.assert_allclose(found.logits["all"].numpy().sum(-1), 0, atol=1e-4)


def packed(system, denominators):
    layout = system.layout(len(denominators))
    numerators = np.ones((len(denominators), 2))
    parts = {"numerators": numerators, "denominators": np.array(denominators)[:, None]}
    return layout.pack({k: np.asarray(v, dtype=np.float64) for k, v in parts.items()})


def test_starved_rows_get_no_trust_and_no_huge_quotient(world):
    system, rows = world.system(), np.arange(8)
    usual = 10.0
    sums = packed(system, [usual, usual, usual, usual, 30.0, 2.4, -5.0, 400.0])
    found = system.read(rows, {"all": sums}, {"all": 9.0}, {"all": 1.0})
    trust = found.trust["all"]
    assert (trust[[5, 6]] == 0).all()
    assert float(trust.mean()) == pytest.approx(1.0)
    # Relative to an ordinary row: three times as much, and four at most.
    np.testing.assert_allclose((trust / trust[0])[[1, 4, 7]], [1, 3, 4], rtol=1e-5)
    assert found.logits["all"].abs().max() == pytest.approx(1 / 2.5)


def test_trust_is_even_where_every_answer_counts_the_same(world, tiny):
    system = world.system(tiny("system.beta=uniform"))
    sums = np.arange(80, dtype=np.float64)
    found = system.read(world.rows, {"all": sums}, {"all": 8.0}, {"all": 1.0})
    assert torch.equal(found.trust["all"], torch.ones(40))
    np.testing.assert_allclose(found.logits["all"].numpy().ravel(order="F"), sums / 8, rtol=1e-6)


def test_the_ratio_of_signal_to_noise_is_told_from_the_released_energy(world):
    system, rng = world.system(), np.random.default_rng(0)
    rows = np.arange(4000)
    numerators = rng.normal(0, 3.0, (4000, 2)) + rng.normal(0, 1.5, (4000, 2))
    parts = {"numerators": numerators, "denominators": np.ones((4000, 1))}
    sums = system.layout(4000).pack(parts)
    found = system.read(rows, {"all": sums}, {"all": 1.0}, {"all": 1.5})
    assert found.signal_to_noise["all"] == pytest.approx(2.0, rel=0.05)
    drowned = system.read(rows, {"all": sums}, {"all": 1.0}, {"all": 50.0})
    assert drowned.signal_to_noise["all"] == 0.0


def test_later_rounds_are_appended(world):
    system = world.system()
    one, two = (
        system.read(rows, {"all": packed(system, d)}, {"all": 9.0}, {"all": 0.0})
        for rows, d in ((np.array([3, 1]), [1.0, 2.0]), (np.array([7]), [4.0]))
    )
    both = one.followed_by(two)
    assert both.rows.tolist() == [3, 1, 7]
    assert torch.equal(both.logits["all"], torch.cat([one.logits["all"], two.logits["all"]]))
    assert len(both.trust["all"]) == 3


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


# Two lineages


def test_what_is_contributed_does_not_depend_on_personal_models(world):
    """A site's record-play: the same bytes leave it, whatever its personal model is or does."""
    system, site = world.system(), world.sites[1]
    speaking = world.speaking[site.name]
    alone = system.contribute(speaking, world.rows, 1, world.returned())
    personal = world.network(site.architecture, "personal")
    central = world.network("test_resnet", "central")
    for spoil in (False, True):
        returned = system.returned(central, world.rows, "all")
        system.personalise(personal, site, central, returned, 0)
        if spoil:
            with torch.no_grad():
                for tensor in personal.parameters():
                    tensor.fill_(math.nan)
        torch.manual_seed(int(spoil))
        again = system.contribute(speaking, world.rows, 1, world.returned())
        assert alone.tobytes() == again.tobytes()


def test_a_speaking_network_does_not_depend_on_personal_models_either(world, tiny):
    config = tiny("privacy.mechanism=none")
    site, system = world.sites[0], world.system(config)
    speaking = world.speaking_of(site, config)
    alone = system.contribute(speaking, world.rows, 0, None)
    personal = world.network(site.architecture, "personal")
    central = world.network("test_resnet", "central")
    returned = system.returned(central, world.rows, "all")
    system.personalise(personal, site, central, returned, 0)
    assert alone.tobytes() == system.contribute(speaking, world.rows, 0, None).tobytes()


def test_personal_and_speaking_models_share_no_memory(world):
    site = world.sites[0]
    backbone = world.speaking[site.name].backbone
    speaks = [*backbone.network.parameters(), *backbone.trunk.parameters()]
    personal = fresh(backbone.network, 2, world.seeds.torch("p"))
    addresses = {tensor.data_ptr() for tensor in personal.parameters()}
    assert addresses.isdisjoint(tensor.data_ptr() for tensor in speaks)


def test_no_type_on_the_way_out_holds_a_personal_model():
    """`Speaking` is public parts and units; the one network in it is the public backbone's."""
    hints = typing.get_type_hints(Speaking)
    assert hints == {
        "site": Site,
        "backbone": PublicBackbone,
        "shards": ShardBatch | None,
        "head": PrivateHead | None,
    }
    for holder in (Speaking, Site, ShardBatch, PrivateHead, Cohort, Recipe, Returned):
        for hint in typing.get_type_hints(holder).values():
            assert not (isinstance(hint, type) and issubclass(hint, nn.Module))
    for step in (NatImgFL.contribute, NatImgFL.speak, NatImgFL.weighted):
        taken = typing.get_type_hints(step).values()
        assert not any(isinstance(hint, type) and issubclass(hint, nn.Module) for hint in taken)
    # A personal model never comes back from where it is trained.
    assert typing.get_type_hints(NatImgFL.personalise)["return"] is float
    assert "central" in inspect.signature(NatImgFL.personalise).parameters


def test_the_speaking_backbone_is_never_trained(world):
    site, system = world.sites[0], world.system()
    before = state(world.speaking[site.name].backbone.network)
    system.contribute(world.speaking[site.name], world.rows, 0, world.returned())
    personal = world.network(site.architecture, "personal")
    central = world.network("test_resnet", "central")
    system.personalise(personal, site, central, system.returned(central, world.rows, "all"), 0)
    assert same(before, state(world.networks[site.architecture]))


def test_rounds_and_sites_train_apart(world):
    system = world.system()
    one, two = (world.speaking[site.name] for site in (world.sites[0], world.sites[2]))
    assert one.backbone is two.backbone, "one public start per architecture"
    first = system.contribute(one, world.rows, 0, None)
    assert not np.array_equal(first, system.contribute(one, world.rows, 1, None))
    assert not np.array_equal(first, system.contribute(two, world.rows, 0, None))


# Several findings per image


def test_a_federation_of_several_findings_plays_a_round(multi_label):
    world = multi_label
    assert world.federation.task.multi_label
    assert world.federation.unit == "image"
    assert any((site.train.known == 0).any() for site in world.sites)
    system, terms = world.system(), world.agree()
    contributions = {
        name: system.contribute(one, world.rows, 0, None) for name, one in world.speaking.items()
    }
    sums = {
        group: sum(
            terms.alphas[name]
            * terms.mechanisms[name].bound(contributions[name], world.layout()).values
            for name in names
        )
        * terms.mechanisms[names[0]].step
        for group, names in terms.groups.items()
    }
    released = system.read(world.rows, sums, terms.teachers, {"all": 0.0})
    logits = released.logits["all"]
    assert logits.shape == (40, 3)
    # Findings are independent of one another: nothing is centred.
    assert logits.sum(-1).abs().max() > 1e-3
    central = world.network("test_resnet", "central")
    assert math.isfinite(system.absorb(central, released, 0))
    site = world.sites[0]
    personal = world.network(site.architecture, "personal")
    before = state(personal)
    returned = system.returned(central, world.rows, "all")
    assert math.isfinite(system.personalise(personal, site, central, returned, 0))
    assert not same(before, state(personal))
    again = system.contribute(world.speaking[site.name], world.rows, 1, returned)
    assert np.isfinite(again).all()


@pytest.mark.parametrize("family", ["uniform", "entropy", "class"])
def test_several_findings_take_every_beta(multi_label, family):
    config = multi_label.config.model_copy(
        update={"system": multi_label.config.system.model_copy(update={"beta": family})}
    )
    site = multi_label.sites[0]
    found = multi_label.system(config).contribute(
        multi_label.speaking[site.name], multi_label.rows, 0, None
    )
    assert np.isfinite(found).all()
    assert found.shape[1] == multi_label.system(config).layout(40).size


def test_an_unknown_beta_cannot_be_configured(tiny):
    with pytest.raises(NatflError, match=r"system\.beta"):
        tiny("system.beta=oracle")
