"""The run loop of systems that learn from sums: phases, cohorts, resuming, protection, reports."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from protocols.errors import ConfigError, LedgerError, ModelError, NatflError
from protocols.ledger import Ledger, ReleaseKey
from secure_natfl.audit.conduct import audit
from secure_natfl.execute import execute
from secure_natfl.federation import build
from secure_natfl.report.model import Report
from secure_natfl.run_folder import RunFolder
from secure_natfl.seeds import Seeds
from secure_natfl.summed import run as summed_run
from secure_natfl.summed.terms import agree_sums
from secure_natfl.summed.weight_vectors import layout_of, not_finite, tensors_of, vector_of
from secure_natfl.system_tables import FedAvg
from secure_natfl.systems.fedavg import Averaging
from secure_natfl.systems.summed import make_system
from tests.secure_natfl.summed_runs import Halves, console, digests, played, shared
from tests.secure_natfl.summed_runs import halves as halves
from tests.secure_natfl.summed_runs import plain as plain
from tests.secure_natfl.summed_runs import small as small


@pytest.mark.parametrize(
    "changes",
    [
        ("aggregation.kind=ckks",),
        ("aggregation.kind=ckks", "aggregation.custody=decryptor"),
        ("aggregation.kind=ring",),
        ("aggregation.kind=slots", "aggregation.unsafe=true"),
    ],
    ids=lambda changes: "/".join(one.split("=")[1] for one in changes),
)
def test_every_aggregation_opens_the_same_integers_for_the_same_stored_ones(
    small, plain, tmp_path, changes
):
    results = played(small("system.rounds=1", *changes), tmp_path / "run")
    assert digests(results) == digests(plain)[:1]


def test_two_phases_of_other_sizes_learn_what_one_does(small, plain, halves, tmp_path):
    results = played(small(), tmp_path / "run")
    ledger = results.accounts["children-1"].lines
    assert [line["round"] for line, _ in ledger] == [0, 1, 2, 3]
    sizes = [one.layout.size for one in results.schedule.agreed]
    assert sum(sizes) == plain.schedule.agreed[0].layout.size
    assert sizes[0] != sizes[1]
    step = 8.0 / (2**17 - 1)
    for name, tensor in shared(results).items():
        # Each phase is rounded to the grid once a round; nothing is clipped here.
        assert torch.allclose(tensor, shared(plain)[name], atol=4 * step)
    assert digests(results) != digests(plain)


KILLED = [
    (Halves, "contribute", 5),
    (summed_run.Protection, "play", 2),
    (summed_run.Trail, "opened", 1),
    (Halves, "absorb", 2),
    (RunFolder, "finish", 4),
    (Halves, "personalise", 2),
]


@pytest.fixture(scope="module")
def undisturbed(small, tmp_path_factory):
    """One round in two phases, from its start to its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FedAvg, "phases", property(lambda self: 2))
        patch.setattr(summed_run, "make_system", Halves)
        return played(small("system.rounds=1"), tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize(
    ("owner", "name", "when"), KILLED, ids=lambda one: one if isinstance(one, str) else ""
)
def test_a_run_killed_anywhere_goes_on_to_the_same_end(
    small, halves, undisturbed, monkeypatch, tmp_path, owner, name, when
):
    """The process dies in `name`, when it gets there for the `when`-th time."""
    config, path = small("system.rounds=1"), tmp_path / "run"
    count = 0

    def dying(old, when):
        def call(*given, **named):
            nonlocal count
            count += 1
            if count == when:
                raise KeyboardInterrupt
            return old(*given, **named)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying(getattr(owner, name), when))
        with pytest.raises(KeyboardInterrupt):
            played(config, path)
    again = played(config, path)
    assert digests(again) == digests(undisturbed)
    for key, tensor in shared(undisturbed).items():
        assert torch.equal(tensor, shared(again)[key])
    for account in again.accounts.values():
        assert len(account.lines) == 2


def test_under_dp_sgd_a_second_phase_is_free_and_follows_a_stored_first(
    small, halves, monkeypatch, tmp_path
):
    config = small(
        "privacy.mechanism=dp-sgd",
        "privacy.layers=last",
        "privacy.steps=2",
        "system.rounds=1",
        "proxies.images=40",
    )
    path = tmp_path / "run"
    old = summed_run.Protection.play

    def dying(self, opening, rows, contributions):
        if opening == 1:
            raise KeyboardInterrupt
        return old(self, opening, rows, contributions)

    with monkeypatch.context() as patch:
        patch.setattr(summed_run.Protection, "play", dying)
        patch.setattr(Halves, "__init__", _few_first(Halves.__init__))
        with pytest.raises(KeyboardInterrupt):
            played(config, path)
    with monkeypatch.context() as patch:
        patch.setattr(Halves, "__init__", _few_first(Halves.__init__))
        results = played(config, path)
    stored = [line["event"] for line, _ in results.accounts["children-1"].lines]
    assert [event["mechanism"] for event in stored] == ["dp-sgd", "post-processing"]
    assert stored[1]["rho"] == 0
    assert "steps" not in stored[1]
    # What was trained before the kill was on disk: nobody trained a second time.
    assert not [call for call in halves[-1].calls if call[2] == "first"]
    spent = results.accounts["children-1"].spent
    assert spent.epsilon == pytest.approx(results.terms.noise_plan.epsilon)
    with pytest.raises(LedgerError, match="has sent nothing"):
        _release_second_first(config, results, tmp_path)


def _few_first(old):
    """Under dp-sgd few tensors are sent: one of them in the first phase."""

    def made(self, *given):
        old(self, *given)
        names = list(self._sent)
        self._parts = {
            "first": {name: self._sent[name] for name in names[:1]},
            "second": {name: self._sent[name] for name in names[1:]},
        }

    return made


def _release_second_first(config, results, tmp_path):
    agreed = results.schedule.agreed[1]
    relation = agreed.mechanism("children-1").event().relation
    with Ledger(
        tmp_path / "fresh.db",
        "children-1",
        "p" * 8,
        relation=relation,
        budget_epsilon=None,
        delta=1e-5,
    ) as ledger:
        agreed.mechanism("children-1").release(
            np.zeros((1, agreed.layout.size)),
            agreed.layout,
            ledger,
            ReleaseKey("s", 1),
            ReleaseKey("s", 0),
        )


FOUR = ("images = 60\nsites = 3", "images = 80\nsites = 4")


def test_a_cohort_is_a_plan_with_fewer_sites_and_the_others_dropped_out(small, tmp_path):
    config = small("system.participation=0.75", instead=FOUR)
    results = played(config, tmp_path / "run")
    cohorts = [set(summary["cohort"]) for summary in results.rounds]
    assert [len(one) for one in cohorts] == [3, 3]
    for site, account in results.accounts.items():
        charged = {line["round"] for line, _ in account.lines}
        assert charged == {number for number, one in enumerate(cohorts) if site in one}
    noisy = small(
        "system.participation=0.75",
        "privacy.mechanism=client-gaussian",
        "privacy.override=true",
        instead=FOUR,
    )
    terms = _terms(noisy)
    plan = terms.agreed[0].terms.noise_plan
    # Four sites, one colluder, one not asked: two honest shares, and three must contribute.
    assert plan.honest == {"all": 2}
    assert terms.agreed[0].terms.least == {"all": 3}
    assert plan.epsilon <= noisy.privacy.epsilon


def _terms(config):
    federation = build(config, lambda name: name.encode().ljust(32, b"k"))
    return agree_sums(config, federation, make_system(config, federation, Seeds.of_study(0)))


@pytest.mark.parametrize(
    ("changes", "instead", "said"),
    [
        (("system.participation=0.5",), FOUR, ("0.5 of 4 sites are 2", "raise it to 0.75")),
        ((), ("sites = 3", "sites = 2"), ("2 participants", "floors are 3")),
        (
            (),
            ('["test_efficientnet"]', '["test_efficientnet", "test_vit"]'),
            ("2 architectures", "cannot be averaged"),
        ),
        (("privacy.mechanism=client-gaussian",), FOUR, ("no crowd", "dp-sgd", "override")),
        (
            ("privacy.mechanism=dp-sgd", "system.proximal=0.1"),
            ("", ""),
            ("dp-sgd", "system.proximal"),
        ),
        (
            ("privacy.mechanism=shard-teachers",),
            ("", ""),
            ("one vector", "client-gaussian", "dp-sgd"),
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_spent(
    small, tmp_path, changes, instead, said
):
    with pytest.raises(NatflError) as refused:
        played(small(*changes, instead=instead), tmp_path / "run")
    line = str(refused.value)
    assert "\n" not in line
    for part in said:
        assert part in line
    assert not list(tmp_path.glob("run/sites/*/ledger.db"))


def test_an_empty_cohort_is_refused(small, monkeypatch):
    monkeypatch.setattr(Averaging, "cohort", lambda self, number: ())
    with pytest.raises(ConfigError, match="round 1 asks no site"):
        _terms(small())


def test_an_update_that_is_not_finite_names_site_and_layer_and_nothing_is_released(
    small, monkeypatch, tmp_path
):
    old = Averaging.contribute

    def broken(self, site, *given):
        vector = old(self, site, *given)
        if site.name == "children-2":
            vector[-1] = np.nan
        return vector

    monkeypatch.setattr(Averaging, "contribute", broken)
    with pytest.raises(ModelError) as refused:
        played(small(), tmp_path / "run")
    assert "children-2, layer network.xray.bias" in str(refused.value)
    assert "learning_rate" in str(refused.value)
    monkeypatch.undo()
    assert len(digests(played(small(), tmp_path / "run"))) == 2


def test_an_update_above_the_clip_is_clipped_and_said(small, tmp_path):
    text = io.StringIO()
    results = played(
        small("privacy.clip=0.01", "system.rounds=1"), tmp_path / "run", Console(file=text)
    )
    assert "is clipped to privacy.clip = 0.01" in text.getvalue()
    assert results.rounds[0]["clipped"] == 3
    before = Averaging(results.system.config, results.federation, results.seeds)
    moved = vector_of(shared(results)) - vector_of(
        {k: v for k, v in before.state().items() if not k.startswith("site/")}
    )
    assert np.linalg.norm(moved) <= 0.01 * 1.001


def test_the_report_shows_what_exists_and_the_audit_holds(small, tmp_path):
    config = small("aggregation.kind=ckks", "run.baselines=true", "system.keep_norms=true")
    page = execute(config, tmp_path / "run", "natfl run test", console())
    report = Report.model_validate_json((tmp_path / "run" / "report.json").read_bytes())
    assert report.system == "fedavg"
    assert report.central is None  # FedBN has no whole shared model
    assert report.proxy is None
    assert set(report.baselines) == {"local_only", "pooled"}
    assert all(client.scores.accuracy is not None for client in report.clients)
    parameters = report.wire.model_fp32_bytes["test_efficientnet"] / 4
    assert report.wire.slots_model_bytes["test_efficientnet"] == 57 * parameters
    assert report.wire.fp32_bytes < 4 * parameters  # normalisation is not sent
    text = page.read_text()
    assert "Central model" not in text
    assert "Public proxy images" not in text
    assert not audit(tmp_path / "run").findings.broken


def test_tensors_and_vectors_are_one_another():
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(5).half()}
    vector, layout = vector_of(tensors), layout_of(tensors)
    back = tensors_of(vector, tensors)
    assert layout.size == 17
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert {name: m.ravel() for name, m in layout.unpack(vector).items()}["b"].tolist() == vector[
        12:
    ].tolist()
    vector[13] = np.inf
    assert not_finite(vector, layout) == "b"
    with pytest.raises(ModelError, match="3 values for tensors of 17"):
        tensors_of(vector[:3], tensors)


def test_the_notes_of_a_round_are_plain_json(plain):
    step = plain.folder / "state" / "round-001" / "notes.json"
    assert json.loads(step.read_text())["cohort"] == ["children-1", "children-2", "children-3"]
