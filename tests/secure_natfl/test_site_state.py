import os
import stat
from pathlib import Path

import numpy as np
import pytest

from protocols.errors import LedgerError, RunFolderError
from protocols.ledger import ReleaseKey
from secure_natfl.config import PackHospital
from secure_natfl.site_state import open_ledger, secret, state_folder


def real(config):
    """The same configuration, but with a hospital of real images beside the phantoms."""
    pack = PackHospital(kind="npz", name="north", path="x.npz", architectures=["test_resnet"])
    data = config.data.model_copy(update={"hospitals": [*config.data.hospitals, pack]})
    return config.model_copy(update={"data": data})


def test_phantoms_stay_in_the_run_and_real_patients_outlive_it(tiny, tmp_path, home):
    config = tiny()
    assert state_folder(config, tmp_path) == tmp_path / "sites"
    assert state_folder(real(config), tmp_path) == home / "state" / "secure_natfl" / "sites"
    named = tiny("ledger.folder=/somewhere/else")
    for each in (named, real(named)):
        assert state_folder(each, tmp_path) == Path("/somewhere/else")


def test_without_a_setting_the_users_state_folder_is_taken(tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / ".local" / "state" / "secure_natfl" / "sites"
    assert state_folder(real(tiny()), tmp_path / "run") == expected


def test_a_secret_is_drawn_once_and_its_owners_alone(tmp_path):
    folder = tmp_path / "site"
    first = secret(folder, "signing", os.urandom)
    assert len(first) == 32
    assert secret(folder, "signing", os.urandom) == first
    assert secret(folder, "partition", os.urandom) != first
    assert secret(tmp_path / "other", "signing", os.urandom) != first
    mode = stat.S_IMODE((folder / "signing.key").stat().st_mode)
    assert mode == 0o600
    assert not list(folder.glob("*.part"))


def test_a_secret_comes_from_the_given_source_only(tmp_path):
    asked = []

    def source(count):
        asked.append(count)
        return b"\x01" * count

    assert secret(tmp_path, "signing", source) == b"\x01" * 32
    secret(tmp_path, "signing", source)
    assert asked == [32]


def test_a_secret_that_cannot_be_kept_is_not_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot be kept .*ledger\.folder"):
        secret(tmp_path / "file" / "site", "signing", os.urandom)


def test_a_ledger_knows_its_patients_in_any_order_and_no_others(world, tiny, tmp_path):
    config, site = tiny(), world.sites[0]
    records = site.records
    turned = records.take(np.arange(len(records))[::-1])
    others = world.sites[1].records
    found = []
    for each in (records, turned, others):
        with open_ledger(config, tmp_path / "site", "children-1", each) as ledger:
            found.append(ledger.patients)
    assert found[0] == found[1] != found[2]
    with open_ledger(config, tmp_path / "elsewhere", "children-1", records) as ledger:
        assert ledger.patients != found[0], "another site's key tells nothing of these patients"
    assert records.patients[0].encode() not in (tmp_path / "site" / "ledger.db").read_bytes()


def test_a_ledger_spans_runs_and_keeps_patient_sets_apart(world, terms, tiny, tmp_path):
    config, site = tiny(), world.sites[0]
    event = terms.mechanisms[site.name].event()
    for run in ("one", "two"):
        with open_ledger(config, tmp_path, site.name, site.records) as ledger:
            ledger.charge(ReleaseKey(run, 0), event)
    with open_ledger(config, tmp_path, site.name, site.records) as ledger:
        assert ledger.spent().charges == 2
        assert ledger.spent().epsilon == pytest.approx(8.0, rel=1e-3)
    with open_ledger(config, tmp_path, site.name, world.sites[1].records) as ledger:
        assert ledger.spent().charges == 0
        assert len(ledger.lines()) == 2


def test_a_ledger_has_the_configured_budget_and_delta(world, tiny, tmp_path):
    site = world.sites[0]
    config = tiny("ledger.budget_epsilon=3.5", "privacy.delta=1e-6")
    with open_ledger(config, tmp_path, site.name, site.records) as ledger:
        assert (ledger.budget_epsilon, ledger.delta) == (3.5, 1e-6)
    with open_ledger(tiny(), tmp_path, site.name, site.records) as ledger:
        assert ledger.budget_epsilon is None
        with pytest.raises(LedgerError, match="another process is writing"):
            open_ledger(tiny(), tmp_path, site.name, site.records)
