"""Each defect beside the check that finds it, and each check on what is sound.

A test of privacy that no defect turns red shows nothing. Here 75 named defects are put into
mechanisms, plans, ledgers, descents, gradients and randomness, in this process only; what they are
is in mutants/*_defects.py, how they are found in mutants/*_checks.py. SECURITY.md names for each
promise the defects that break it. Audits by two worlds find 11 of them (400 to 2,000 trials a
world); the rest fall to exact tests and tests of the noise's law, most of which no audit of any
affordable length would replace.
"""

from inspect import signature

import pytest

from protocols.mechanisms import ShardTeachers
from tests.claims.mutant_cases import CASES, RECORDER
from tests.claims.mutant_makers import SOUND, defects


def call(case, subject, folder):
    extra = (folder,) if "folder" in signature(case.check).parameters else ()
    return case.check(*subject(), *extra)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_defect_is_flagged(case, tmp_path):
    assert call(case, case.broken, tmp_path)


SOUND_CASES = list({(case.check, repr(case.sound())): case for case in CASES}.values())
"""One per check and subject: many defects share the sound subject that they spoil."""


@pytest.mark.parametrize("case", SOUND_CASES, ids=lambda case: case.name)
def test_what_is_sound_is_not_flagged(case, tmp_path):
    assert not call(case, case.sound, tmp_path)


def test_the_defects_have_names_of_their_own():
    assert len({case.name for case in CASES}) == len(CASES) == 75


def test_every_kind_of_recorded_violation_has_its_defects():
    named = {name for names in RECORDER.values() for name in names}
    assert named <= {case.name for case in CASES}
    assert all(RECORDER.values())


def test_mutants_keep_the_figures_that_they_do_not_change():
    made = defects.become(defects.Noise, SOUND)
    assert isinstance(made, ShardTeachers)
    assert made.event() == SOUND.event()
    assert made.sensitivity == SOUND.sensitivity
