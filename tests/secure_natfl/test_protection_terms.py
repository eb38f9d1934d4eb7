"""What is agreed on before the first round: noise, shards, floors and weights."""

import dataclasses
import math

import numpy as np
import pytest

from protocols.errors import ConfigError, PrivacyError
from protocols.policy import effective
from secure_natfl.data.records import Records
from secure_natfl.federation import examples
from secure_natfl.planner import PATIENTS_PER_SHARD, teachers_of
from secure_natfl.terms import agree
from tests.secure_natfl.protecting import PLAIN, SILENT, contributions
from tests.secure_natfl.protecting import protect as protect


def with_patients(world, counts):
    """The federation with so many training patients at each site, one image each."""
    sites = []
    for site, count in zip(world.sites, counts, strict=True):
        records = Records(
            np.zeros((count, 32, 32), np.uint8),
            np.arange(count) % 2,
            site.records.class_names,
            tuple(f"{site.name}:{i}" for i in range(count)),
            site.unit,
            site.name,
        )
        sites.append(dataclasses.replace(site, records=records, train=examples(records, 32)))
    return dataclasses.replace(world.federation, sites=tuple(sites))


def agreed(world, config, federation=None, alphas=None):
    federation = federation or world.federation
    names = [site.name for site in federation.sites]
    return agree(
        config,
        federation,
        world.layout(),
        alphas or dict.fromkeys(names, 1),
        dict.fromkeys(names, "all"),
    )


def test_the_terms_reach_the_asked_epsilon_at_every_site(terms, world):
    assert terms.noise_plan.epsilon == pytest.approx(8.0, rel=1e-3)
    assert terms.noise_plan.epsilon_isolated > terms.noise_plan.epsilon
    assert set(terms.mechanisms) == {site.name for site in world.sites}
    assert {m.clip_norm for m in terms.mechanisms.values()} == {20.0}
    assert len({m.clip_int for m in terms.mechanisms.values()}) == 1, "units add up"
    assert terms.teachers == {"all": 15.0}


def test_delta_must_be_below_one_patient_and_the_advice_works(world, tiny):
    federation = with_patients(world, (30, 12, 400))
    for delta in (0.5, 1 / 400):
        with pytest.raises(PrivacyError) as refused:
            agreed(world, tiny(f"privacy.delta={delta}"), federation)
        line = str(refused.value)
        assert line.startswith("privacy.delta, children-3: ")
        assert "is not below 1/400 patients" in line
    advice = float(line.rpartition("at most ")[2])
    plan = agreed(world, tiny(f"privacy.delta={advice}"), federation).noise_plan
    assert plan.delta == advice


def test_no_site_has_more_shards_than_a_third_of_its_patients(world, tiny):
    federation = with_patients(world, (30, 12, 6))
    config = tiny("privacy.shards=8")
    assert list(teachers_of(config, federation).values()) == [8, 4, 2]
    terms = agreed(world, config, federation)
    assert [m.shards for m in terms.mechanisms.values()] == [8, 4, 2]
    assert terms.teachers == {"all": 14.0}
    assert PATIENTS_PER_SHARD == 3


def test_too_few_patients_for_two_shards_are_refused_by_name(world, tiny):
    federation = with_patients(world, (30, 5, 6))
    with pytest.raises(PrivacyError, match=r"children-2: 5 patients are too few for two shards"):
        agreed(world, tiny(), federation)


@pytest.mark.parametrize("mechanism", ["dp-sgd", "client-gaussian"])
def test_one_patient_is_no_crowd(world, tiny, mechanism):
    config = tiny(f"privacy.mechanism={mechanism}")
    with pytest.raises(PrivacyError, match=r"children-2: 1 patient\(s\) are too few .*leave"):
        agreed(world, config, with_patients(world, (30, 1, 6)))


def test_without_noise_there_is_one_teacher_or_as_many_shards(world, tiny):
    assert set(teachers_of(tiny("privacy.mechanism=none"), world.federation).values()) == {1}
    assert set(teachers_of(tiny(*SILENT), world.federation).values()) == {5}
    terms = agreed(world, tiny(*SILENT))
    assert terms.noise_plan is None
    assert terms.noise == {"all": 0.0}


def test_a_group_that_is_too_small_is_refused(world, tiny):
    federation = dataclasses.replace(world.federation, sites=world.sites[:2])
    with pytest.raises(ConfigError, match=r"2 participants in a group .*floors are 3"):
        agreed(world, tiny(), federation)
    with pytest.raises(PrivacyError, match=r"group all: .*4 participants would work"):
        agreed(world, tiny("privacy.colluders=2", "privacy.dropouts=1"))
    with pytest.raises(PrivacyError, match="no honest noise share"):
        agreed(world, tiny("privacy.colluders=3"))
    assert agreed(world, tiny("privacy.colluders=2")).noise_plan.honest == {"all": 1}


def test_colluders_that_could_open_by_themselves_are_refused_where_sites_hold_the_shares(
    world, tiny
):
    """Seven sites, of whom five open: five colluders would meet no noise but a site's own."""
    site = world.sites[0]
    seven = [dataclasses.replace(site, name=f"site-{i}") for i in range(7)]
    federation = dataclasses.replace(world.federation, sites=tuple(seven))
    with pytest.raises(PrivacyError, match=r"hold 5 key shares .* lower it to 4, or .*decryptor"):
        agreed(world, tiny("privacy.colluders=5"), federation)
    assert agreed(world, tiny("privacy.colluders=4"), federation).noise_plan.honest == {"all": 3}
    # With one honest share the plan counts on nobody else's noise anyway.
    assert agreed(world, tiny("privacy.colluders=6"), federation).noise_plan.honest == {"all": 1}
    apart = tiny("privacy.colluders=5", "aggregation.custody=decryptor")
    assert agreed(world, apart, federation).noise_plan.honest == {"all": 2}


def test_weights_are_lowered_to_the_floor_of_effective_contributors(world, tiny):
    names = [site.name for site in world.sites]
    uneven = dict(zip(names, (16, 1, 1), strict=True))
    terms = agreed(world, tiny("system.alpha_max=16"), alphas=uneven)
    assert list(terms.alphas.values()) == [4, 1, 1]
    assert effective((4, 1, 1)) == 2.0
    assert effective((5, 1, 1)) < 2.0
    strict = agreed(world, tiny("aggregation.min_effective=2.9"), alphas=uneven)
    assert effective(tuple(strict.alphas.values())) >= 2.9
    # A heavy site counts more in the sum and adds the smaller noise of its own.
    light, heavy = (terms.mechanisms[name] for name in (names[1], names[0]))
    assert heavy.sigma_share == pytest.approx(light.sigma_share / 4)
    with pytest.raises(ConfigError, match=r"3\.5 effective"):
        agreed(world, tiny("aggregation.min_effective=3.5"))


def test_the_stated_noise_is_what_the_sum_gets(protect):
    protection = protect(PLAIN)
    zero = contributions(protection, loud=0.0)
    _, sums = protection.play(0, np.arange(40), zero)
    stated = protection.terms.noise["all"]
    # 120 draws: the root of their mean square is within a fifth of σ.
    assert math.sqrt(float((sums["all"] ** 2).mean())) == pytest.approx(stated, rel=0.2)


def test_the_digest_of_the_terms_covers_weights_and_noise(world, tiny, planned):
    base = planned()[1]
    assert base.digest == agreed(world, tiny(), alphas=base.alphas).digest
    names = list(base.alphas)
    others = [
        agreed(world, tiny("privacy.epsilon=7")),
        agreed(world, tiny("privacy.clip=21")),
        agreed(world, tiny(), alphas=dict(zip(names, (2, 1, 1), strict=True))),
    ]
    assert len({terms.digest for terms in (base, *others)}) == 4
