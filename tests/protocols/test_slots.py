"""`slots`: the usual way, for studies. Equal integers, floats on the wire, and unsafe by name."""

import numpy as np
import pytest

from protocols.errors import ConfigError, PrivacyError, ProtocolError
from protocols.messages import Reading
from protocols.policy import holder_name
from protocols.secagg.slots import Slots
from protocols.slots import SLOTS18_140, SLOTS18_200
from protocols.tenseal_slots import SlotsSecret

ALPHAS = (1, 2, 3, 4)


def topology(world, weighting="client", preset=SLOTS18_140, **changes):
    enrolment = world.enrolment(
        mode="slots/shared",
        holders={holder_name(name): key.public.hex() for name, key in world.keys.items()},
        preset=preset.name,
        **changes,
    )
    made = Slots(
        world.server(enrolment),
        world.clients(enrolment),
        world.wire,
        SlotsSecret(preset),
        unsafe=True,
        weighting=weighting,
    )
    return made, enrolment


@pytest.mark.parametrize(
    ("weighting", "preset"),
    [("client", SLOTS18_140), ("slot", SLOTS18_140), ("ciphertext", SLOTS18_200)],
)
def test_every_weighting_gives_the_integers_of_the_exact_modes(world, weighting, preset):
    slots, enrolment = topology(world, weighting, preset)
    plan = world.plan(enrolment=enrolment, groups=world.groups("abcd"))
    outcome = slots.play(plan)
    plain, clear = world.plain()
    in_clear = plain.play(world.plan(enrolment=clear, groups=world.groups("abcd")))
    assert outcome.aggregates["g0"].sha256 == in_clear.aggregates["g0"].sha256
    np.testing.assert_array_equal(outcome.aggregates["g0"].integers, world.total(plan.groups[0]))


def test_the_published_reading_is_approximate_and_on_the_wire(world):
    slots, enrolment = topology(world)
    plan = world.plan(enrolment=enrolment)
    slots.play(plan)
    (reading,) = world.transcript.view(["network"]).of(Reading)
    errors = np.abs(reading.floats - world.total(plan.groups[0]))
    assert 0 < errors.max() < 0.5


def test_it_is_refused_unless_called_unsafe(world):
    slots, _ = topology(world)
    with pytest.raises(PrivacyError, match="unsafe = true"):
        Slots(slots._server, slots._clients, world.wire, slots._secret)


def test_weights_beyond_what_was_tested_are_no_plan(world):
    _, enrolment = topology(world)
    with pytest.raises(ConfigError, match="tested"):
        world.plan(enrolment=enrolment, groups=world.groups("abcd", alphas=(9, 9, 9, 9)))


def test_a_reading_that_is_not_of_this_request_is_refused(world, monkeypatch):
    slots, enrolment = topology(world)
    read = slots._read
    first = []

    def replayed(blob, reader, width):
        first.append(read(blob, reader, width))
        return first[0]

    monkeypatch.setattr(slots, "_read", replayed)
    slots.play(world.plan(enrolment=enrolment))
    with pytest.raises(ProtocolError):
        slots.play(world.plan(2, enrolment=enrolment))
