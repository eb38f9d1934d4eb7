"""Whole runs in every mode: the same aggregates, the bytes that a check foretold, and dropouts."""

import io

import pytest
import torch
from rich.console import Console

import secure_natfl.run
from protocols.errors import ProtocolError
from protocols.policy import holder_name, threshold_of
from protocols.promises import PROMISES
from secure_natfl.check import check
from secure_natfl.protection import Protection
from secure_natfl.reporting import consortium
from secure_natfl.run import Run
from secure_natfl.run_folder import RunFolder
from secure_natfl.terms import preset_of

MODES = sorted(PROMISES)
SILENT = ("privacy.mechanism=none", "privacy.speaking=shards", "run.baselines=false")


def changes_to(mode):
    kind, custody = mode.split("/")
    unsafe = ["aggregation.unsafe=true"] if kind == "slots" else []
    return [f"aggregation.kind={kind}", f"aggregation.custody={custody}", *unsafe]


def played(config, path):
    return Run(config, RunFolder.open(path, config, "", resume=False), console()).play()


def console():
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Mode → a seeded run without noise, with its configuration."""
    found = {}
    for mode in MODES:
        config = tiny(*SILENT, *changes_to(mode))
        found[mode] = config, played(config, tmp_path_factory.mktemp("run"))
    return found


def test_every_mode_gives_the_same_aggregates_in_every_round(runs):
    digests = {
        mode: [round_["aggregate_sha256"] for round_ in results.rounds]
        for mode, (_, results) in runs.items()
    }
    assert all(len(rounds) == 2 and all(rounds) for rounds in digests.values())
    assert len({str(rounds) for rounds in digests.values()}) == 1
    first, second = digests["plain/none"]
    assert first != second


@pytest.mark.parametrize("mode", MODES)
def test_a_check_foretells_what_a_site_sends_and_who_opens(mode, runs):
    config, results = runs[mode]
    foretold = check(config)
    sent = max(summary["upload_bytes"] for summary in results.rounds)
    assert foretold.upload_bytes == pytest.approx(sent, rel=0.02, abs=120)
    assert (foretold.mode, foretold.threshold) == (mode, results.threshold)
    assert foretold.key_holders == len(results.holders)
    report = consortium(config, results, "natfl run")
    assert report.wire.upload_bytes == sent
    assert report.absent == ()


def test_in_the_default_mode_the_sites_hold_the_key_shares(tiny, runs, tmp_path):
    assert tiny().mode == "ckks/threshold"
    _, results = runs["ckks/threshold"]
    names = [site.name for site in results.federation.sites]
    assert results.holders == tuple(sorted(map(holder_name, names)))
    assert results.threshold == threshold_of(len(names))[0]
    for name in names:
        journal = results.folder / "holders" / holder_name(name) / "journal"
        assert journal.is_dir()
        key = results.folder / "sites" / name / "holder.key"
        assert key.stat().st_mode & 0o077 == 0
        assert key.read_bytes() != (key.parent / "signing.key").read_bytes()


def test_the_preset_with_the_shortest_messages_that_is_proved_is_taken():
    even, heavy = [4] * 8, [4] * 9
    assert preset_of("ckks/threshold", [even, [1, 1, 1]]) == "mk18-39"
    assert preset_of("ckks/threshold", [even, heavy]) == "mk18-49"
    assert preset_of("ckks/decryptor", [heavy]) == preset_of("plain/none", [heavy]) == "pk18-44"
    assert preset_of("ring/decryptor", [heavy]) == "pk18-44"


# Sites that drop out


@pytest.fixture
def cut(monkeypatch):
    """Runs in which these parties are cut off from the start; what their rounds gave."""

    def cutting(*parties):
        given = []

        class Cut(Protection):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                for party in parties:
                    self.wire.cut(party)

            def play(self, *arguments):
                given.append(super().play(*arguments))
                return given[-1]

        monkeypatch.setattr(secure_natfl.run, "Protection", Cut)
        return given

    return cutting


def test_a_sum_of_fewer_sites_is_divided_by_their_teachers_and_reported(four, cut, tmp_path):
    gone, silent = "children-2", holder_name("children-3")
    given = cut(gone, silent)
    config = four(*SILENT, "system.beta=uniform", "system.rounds=1")
    results = played(config, tmp_path / "run")
    ((outcome, sums),) = given
    present = outcome.aggregates["all"].participants
    assert present == ("children-1", "children-3", "children-4")
    terms = results.terms
    counted = sum(terms.alphas[site] * terms.mechanisms[site].shards for site in present)
    assert counted == terms.among({"all": present}).teachers["all"] < terms.teachers["all"]
    columns = torch.from_numpy(sums["all"]).float().reshape(2, -1)
    torch.testing.assert_close(results.state.released.logits["all"], columns.T / counted)
    report = consortium(config, results, "natfl run")
    assert {(one.round, one.party) for one in report.absent} == {(1, gone), (1, silent)}
    assert all(one.why for one in report.absent)


def test_the_noise_of_a_sum_is_that_of_the_sites_in_it(world, terms):
    sites = terms.groups["all"]
    whole, part = terms.noise["all"], terms.among({"all": sites[:2]}).noise["all"]
    assert terms.noise_plan.noise_norm["all"] == pytest.approx(
        whole / terms.mechanisms[sites[0]].step * world.layout().size ** 0.5
    )
    # After the weights all shares are equal.
    assert part == pytest.approx(whole * (2 / 3) ** 0.5)


def test_no_sum_opens_of_fewer_sites_than_the_noise_counts_on(four, cut, tmp_path):
    cut("children-2")
    refused = four("run.baselines=false", "system.rounds=1")
    with pytest.raises(ProtocolError, match="too few contributions"):
        played(refused, tmp_path / "none")
    allowed = four("run.baselines=false", "system.rounds=1", "privacy.dropouts=1")
    results = played(allowed, tmp_path / "one")
    assert results.terms.least == {"all": 3}
    assert list(results.rounds[0]["absent"]) == ["children-2"]
    assert results.terms.noise_plan.epsilon == pytest.approx(8.0, rel=1e-3)
    assert len(list((tmp_path / "one" / "holders").iterdir())) == 4
