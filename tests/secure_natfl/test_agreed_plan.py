"""A server that signs another plan than the agreed one gets nothing, and nothing is charged."""

import numpy as np
import pytest

from protocols.chain import digest
from protocols.errors import ProtocolError
from protocols.messages import Group
from protocols.secagg import draft
from secure_natfl.protection import Protection
from secure_natfl.seeds import Seeds

SESSION = "b" * 32


@pytest.fixture
def protection(world, tiny, tmp_path):
    config = tiny("aggregation.kind=plain")
    with Protection(
        config,
        world.federation,
        world.agree(config),
        world.layout(config),
        SESSION,
        tmp_path / "run",
        Seeds(b"r" * 32, seeded=False),
    ) as made:
        yield made


def planned(protection, groups, round_number=0):
    return draft(
        protection.enrolment,
        protection.transcript,
        round_number=round_number,
        groups=groups,
        layout=digest(b"layout"),
        size=protection.layout.size,
        subset=np.arange(round_number * 40, round_number * 40 + 40),
    )


def play(protection, groups, round_number=0):
    """What a server's own plan leads to."""
    rng = np.random.default_rng(0)
    protection._pending = {
        site: rng.normal(size=(m.shards, m.size)) for site, m in protection.terms.mechanisms.items()
    }
    return protection._topology.play(planned(protection, groups, round_number))


def agreed(protection):
    ((name, sites),) = protection.terms.groups.items()
    alphas = tuple(protection.terms.alphas[site] for site in sites)
    least = protection.terms.least[name]
    return Group(name=name, participants=tuple(sites), alphas=alphas, least=least)


def charged(protection):
    return sum(len(ledger.lines()) for ledger in protection.ledgers.values())


def test_the_agreed_plan_is_played(protection):
    assert play(protection, [agreed(protection)]).aggregates
    assert charged(protection) == 3


@pytest.mark.parametrize("change", ["heavier", "renamed", "fewer suffice", "further round"])
def test_any_other_plan_is_refused_before_a_charge(protection, change):
    group = agreed(protection)
    heavier = (group.alphas[0] + 1, *group.alphas[1:])
    groups = {
        "heavier": group.model_copy(update={"alphas": heavier}),
        "renamed": group.model_copy(update={"name": "other"}),
        "fewer suffice": group.model_copy(update={"least": group.least - 1}),
        "further round": group,
    }
    number = protection.config.system.rounds if change == "further round" else 0
    with pytest.raises(ProtocolError, match="not those agreed on"):
        play(protection, [groups[change]], number)
    assert charged(protection) == 0


def test_fewer_participants_than_agreed_are_refused_by_those_that_are_left(protection):
    """The floors of this small federation would stop it first; the site's own check needs none."""
    group = agreed(protection)
    fewer = group.model_copy(
        update={"participants": group.participants[:2], "alphas": group.alphas[:2]}
    )
    plan = planned(protection, [group]).model_copy(update={"groups": (fewer,)})
    with pytest.raises(ProtocolError, match="not those agreed on"):
        protection._check_agreed(plan, fewer.participants[0])
