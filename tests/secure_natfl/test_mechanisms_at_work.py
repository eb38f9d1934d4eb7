"""Every mechanism in every mode: whole runs, retries, resumptions, reports and refusals."""

import io
import json
import shutil

import numpy as np
import pytest
from rich.console import Console

import secure_natfl.run
import secure_natfl.systems.private_head as private_head
from protocols.accounting import ADD_OR_REMOVE_ONE, REPLACE_ONE
from protocols.dp_sgd import Descent
from protocols.errors import (
    ConfigError,
    LedgerError,
    ModelError,
    PrivacyError,
    ProtocolError,
)
from protocols.mechanisms import TrainedOutput
from protocols.promises import PROMISES
from secure_natfl.check import check
from secure_natfl.deep_training import trained_parameters
from secure_natfl.federation import Site
from secure_natfl.protection import Protection
from secure_natfl.report.render import report_html, site_html
from secure_natfl.reporting import consortium
from secure_natfl.run import Run
from secure_natfl.run_folder import RunFolder
from secure_natfl.site_reporting import site_report
from secure_natfl.site_state import open_ledger
from secure_natfl.systems.speaking import Speaking

TRAINED = ("privacy.mechanism=dp-sgd", "privacy.epsilon=1", "privacy.steps=5", "privacy.rate=0.5")
MECHANISMS = {
    "dp-sgd": TRAINED,
    "shard-teachers": (),
    "client-gaussian": ("privacy.mechanism=client-gaussian", "privacy.override=true"),
    "none": ("privacy.mechanism=none",),
}
ONE_ROUND = ("system.rounds=1", "proxies.per_round=20", "run.baselines=false")


def mode_of(mode):
    kind, custody = mode.split("/")
    unsafe = ["aggregation.unsafe=true"] if kind == "slots" else []
    return [f"aggregation.kind={kind}", f"aggregation.custody={custody}", *unsafe]


def played(config, path, *, resume=False):
    console = Console(file=io.StringIO())
    return Run(config, RunFolder.open(path, config, "", resume=resume), console).play()


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Mechanism → mode → a seeded run of one round, with its configuration: 14 runs.

    Those of noise in all five modes; the other two in two, and test_modes.py has `none` in all.
    """
    found = {}
    for name, changes in MECHANISMS.items():
        every = name in ("dp-sgd", "shard-teachers")
        for mode in PROMISES if every else ("ckks/threshold", "plain/none"):
            config = tiny(*changes, *ONE_ROUND, *mode_of(mode))
            folder = tmp_path_factory.mktemp("run")
            found.setdefault(name, {})[mode] = config, played(config, folder)
    return found


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_mechanism_gives_the_same_sums_in_every_mode(runs, mechanism):
    digests = {
        tuple(results.rounds[0]["aggregate_sha256"]) for _, results in runs[mechanism].values()
    }
    assert len(runs[mechanism]) == (5 if mechanism in ("dp-sgd", "shard-teachers") else 2)
    assert len(digests) == 1


def test_no_two_mechanisms_give_the_same_sums(runs):
    modes = [by_mode["plain/none"][1].rounds[0]["aggregate_sha256"][0] for by_mode in runs.values()]
    assert len(set(modes)) == 4


@pytest.mark.parametrize(
    ("mechanism", "relation", "unit"),
    [
        ("dp-sgd", ADD_OR_REMOVE_ONE, "patient"),
        ("shard-teachers", REPLACE_ONE, "patient"),
        ("client-gaussian", ADD_OR_REMOVE_ONE, "client"),
        ("none", REPLACE_ONE, "patient"),
    ],
)
@pytest.mark.parametrize("mode", ["ckks/threshold", "plain/none"])
def test_a_report_states_the_guarantee_of_its_mechanism(runs, mechanism, relation, unit, mode):
    config, results = runs[mechanism][mode]
    report = consortium(config, results, "natfl run")
    privacy, guarantee = report.privacy, report.privacy.guarantee
    assert (privacy.mechanism, privacy.relation, privacy.unit) == (mechanism, relation, unit)
    assert (guarantee.mechanism, guarantee.relation, guarantee.unit) == (mechanism, relation, unit)
    assert privacy.statement == guarantee.paragraph()
    page = report_html(report)
    assert relation in page
    assert guarantee.accountant in page
    read = json.loads(report.model_dump_json())
    assert type(report).model_validate(read) == report
    if mechanism == "none":
        assert read["privacy"]["epsilon"] == "inf"
        return
    assert privacy.crosscheck_epsilon == guarantee.cross_check
    assert privacy.epsilon == pytest.approx(guarantee.epsilon)
    assert read["privacy"]["guarantee"]["parameters"] == guarantee.parameters
    for entry in results.accounts.values():
        assert entry.spent.epsilon == pytest.approx(privacy.epsilon, rel=1e-6)
    site = site_report(config, results, results.federation.sites[0], "natfl run")
    assert [(b.session, b.charges) for b in site.budgets] == [
        (results.accounts[site.client.name].session, 1),
        (None, 1),
    ]
    assert site.budgets[-1].epsilon == pytest.approx(privacy.epsilon)
    assert site.statement in site_html(site).replace("&#39;", "'").replace("&#34;", '"')


def test_trained_noise_holds_against_everybody_even_without_encryption(runs):
    for mode in ("ckks/threshold", "plain/none"):
        config, results = runs["dp-sgd"][mode]
        privacy = consortium(config, results, "natfl run").privacy
        assert privacy.epsilon == privacy.epsilon_isolated <= 1.0
        assert (privacy.t, privacy.d) == (None, None)
        assert privacy.adversary.startswith("everybody but the site itself")
        assert results.terms.least == {"all": 3}, "no noise shares to count: the floor alone"
        words = report_html(consortium(config, results, "natfl run"))
        assert "Whoever colludes" in words
        assert "noise shares" not in words
    # At release, others' shares count, and without encryption nobody adds them up first.
    config, results = runs["shard-teachers"]["plain/none"]
    privacy = consortium(config, results, "natfl run").privacy
    assert privacy.epsilon < privacy.epsilon_isolated
    assert f"only ε = {privacy.epsilon_isolated:.3g} holds" in privacy.adversary


def test_a_check_foretells_the_noise_of_every_mechanism(runs):
    checks = {name: check(by_mode["plain/none"][0]) for name, by_mode in runs.items()}
    trained = checks["dp-sgd"]
    _, results = runs["dp-sgd"]["plain/none"]
    for site in trained.sites:
        plan = results.terms.mechanisms[site.name].training
        assert site.gradient_noise == plan.noise_multiplier / plan.expected
        assert site.epsilon == site.epsilon_isolated <= 1.0
    (group,) = trained.groups
    assert group.colluders is None
    assert 0 < group.signal_to_noise_at_most < 1
    assert "clips" in group.noise_predicted
    (group,) = checks["client-gaussian"].groups
    assert "(chance 50.0%)" in group.noise_predicted
    assert checks["none"].groups[0].noise_predicted == "no noise"
    assert {site.gradient_noise for site in checks["shard-teachers"].sites} == {None}


def test_the_noise_control_trains_under_the_same_noise_and_charges_nobody(tiny, tmp_path):
    config = tiny(*TRAINED, "system.rounds=1", "aggregation.kind=plain")
    results = played(config, tmp_path / "run")
    assert "noise_proxies" in results.arms
    assert {len(account.lines) for account in results.accounts.values()} == {1}


def test_a_block_is_trained_end_to_end_and_the_report_says_so(tiny, tmp_path):
    config = tiny(
        *TRAINED, *ONE_ROUND, "aggregation.kind=plain", "privacy.layers=last", "privacy.steps=1"
    )
    trained = trained_parameters("test_resnet", 32, 2, "last")
    ahead = check(config)
    results = played(config, tmp_path / "run")
    plans = [mechanism.training for mechanism in results.terms.mechanisms.values()]
    assert {(plan.size, plan.layers) for plan in plans} == {(trained, "last")}
    ratios = [1 / (plan.noise_multiplier / plan.expected * trained**0.5) for plan in plans]
    assert ahead.groups[0].signal_to_noise_at_most == pytest.approx(min(ratios))
    privacy = consortium(config, results, "natfl run").privacy
    assert f"size {trained}, " in privacy.statement
    assert "layers last" in privacy.statement
    assert privacy.parameters["layers trained"] == "last"
    assert {len(account.lines) for account in results.accounts.values()} == {1}


# Retries and resumptions


class Killed(BaseException):
    """Ends a run the way a signal would: nothing after it runs."""


def lines_of(results):
    return {name: [line for line, _ in account.lines] for name, account in results.accounts.items()}


@pytest.mark.parametrize("mechanism", ["dp-sgd", "shard-teachers"])
def test_a_round_that_is_played_again_sends_what_is_stored_and_trains_nothing(
    tiny, tmp_path, mechanism, monkeypatch
):
    config = tiny(*MECHANISMS[mechanism], *ONE_ROUND, "run.seed=system")
    first = played(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "state" / "round-000")

    def refuse(*_):
        raise AssertionError("a model was trained again")

    monkeypatch.setattr(secure_natfl.run.NatImgFL, "contribute", refuse)
    again = played(config, tmp_path / "run", resume=True)
    assert again.rounds[0]["aggregate_sha256"] == first.rounds[0]["aggregate_sha256"]
    assert lines_of(again) == lines_of(first)


def test_a_run_killed_in_the_middle_of_training_goes_on_under_the_same_charge(
    tiny, tmp_path, monkeypatch
):
    config = tiny(*TRAINED, "run.baselines=false", "run.seed=system")
    steps, step = [], Descent.step

    def dying(descent, gradients):
        steps.append(descent)
        if len(steps) == 8:
            raise Killed
        return step(descent, gradients)

    with monkeypatch.context() as patch:
        patch.setattr(Descent, "step", dying)
        with pytest.raises(Killed):
            played(config, tmp_path / "run")
    sites = {site: tmp_path / "run" / "sites" / site for site in config.site_names()}
    assert [len(set(map(id, steps[:5]))), len(set(map(id, steps)))] == [1, 2]
    results = played(config, tmp_path / "run", resume=True)
    assert set(results.accounts) == set(sites)
    for lines in lines_of(results).values():
        assert [line["round"] for line in lines] == [0, 1]
    for account in results.accounts.values():
        assert account.spent.epsilon <= 1.0


def test_a_head_of_another_size_is_refused_before_it_is_charged(world, tiny, tmp_path):
    config = tiny(*TRAINED, "aggregation.kind=plain")
    with Protection(
        config,
        world.federation,
        world.agree(config),
        world.layout(config),
        "c" * 32,
        tmp_path,
        world.seeds,
    ) as protection:
        (site, *_) = protection.ledgers
        mechanism = protection.terms.mechanisms[site]
        assert isinstance(mechanism, TrainedOutput)
        with pytest.raises(ModelError, match="agreed on for another"):
            protection.begin(site, 0)(mechanism.training.size + 1)
        assert not protection.ledgers[site].lines()
        descent = protection.begin(site, 0)(mechanism.training.size)
        assert descent.left == 5
        assert not protection.stored(site, 0)
        given = {name: np.zeros((1, m.size)) for name, m in protection.terms.mechanisms.items()}
        with pytest.raises(ProtocolError, match="in which nothing was trained"):
            protection.play(1, np.arange(40, 80), given)
        with pytest.raises(PrivacyError, match="5 of 5 steps to go"):
            protection.play(0, np.arange(40), given)
        assert not protection.stored(site, 0)


# What trains


def test_the_head_learns_from_its_units_alone_and_no_personal_model(world, tiny):
    config = tiny(*TRAINED, "privacy.max_images_per_patient=2")
    site = world.sites[0]
    speaking = world.speaking_of(site, config)
    assert isinstance(speaking, Speaking)
    assert speaking.shards is None
    assert len(speaking.head.cohort) == site.patients
    assert speaking.head.recipe.images == 2
    with pytest.raises(PrivacyError, match="no charge for it"):
        world.system(config).contribute(speaking, world.rows, 0, None)


def test_where_no_patients_are_known_a_unit_is_an_image(multi_label):
    site: Site = multi_label.sites[0]
    assert site.unit == "image"
    head = private_head.PrivateHead.of(
        site,
        multi_label.config.model_copy().privacy.model_copy(
            update={"learning_rate": 1.0, "max_images_per_patient": 4, "layers": "head"}
        ),
    )
    assert len(head.cohort) == len(site.train) == site.patients
    assert head.multi_label


def test_label_counts_do_not_leave_a_site_that_trains_under_noise(tiny, world, tmp_path):
    with pytest.raises(ConfigError, match=r'system\.beta: "class" sends shares of private labels'):
        tiny(*TRAINED, "system.beta=class")


# Refusals


def test_a_ledger_of_the_other_relation_says_what_to_do(world, tiny, tmp_path):
    site = world.sites[0]
    teachers, trained = tiny(), tiny(*TRAINED)
    for ours, other, goes_on in (
        (teachers, trained, "shard-teachers"),
        (trained, teachers, "dp-sgd"),
    ):
        folder = tmp_path / goes_on
        open_ledger(ours, folder, site.name, site.records).close()
        with pytest.raises(LedgerError, match="do not add up") as refused:
            open_ledger(other, folder, site.name, site.records)
        line = str(refused.value)
        assert f'go on with privacy.mechanism = "{goes_on}"' in line
        assert "ledger.folder" in line
        open_ledger(ours, folder, site.name, site.records).close()


def test_client_gaussian_is_refused_with_what_it_would_be_worth(tiny, world):
    with pytest.raises(PrivacyError) as refused:
        world.agree(tiny("privacy.mechanism=client-gaussian"))
    line = str(refused.value)
    for part in ("consensus right in", "(chance 50.0%)", "signal to noise", "privacy.override"):
        assert part in line
    terms = world.agree(tiny(*MECHANISMS["client-gaussian"]))
    assert terms.noise_plan.epsilon == pytest.approx(8.0, rel=1e-2)
    assert terms.least == {"all": 3}


# Kept heads


def test_a_ledger_that_was_put_back_is_found_by_another_sites_copy(tiny, tmp_path):
    config = tiny("aggregation.kind=plain", "run.baselines=false", "run.seed=system")
    folder, sites = tmp_path / "run", tmp_path / "run" / "sites"
    before = tmp_path / "before.db"

    class Copying(Protection):
        def play(self, round_number, *arguments):
            given = super().play(round_number, *arguments)
            if round_number == 0:
                self.ledgers["children-2"].close()
                shutil.copy(sites / "children-2" / "ledger.db", before)
                raise Killed
            return given

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secure_natfl.run, "Protection", Copying)
        with pytest.raises(Killed):
            played(config, folder)
    played(config, folder, resume=True)
    books = {book.parent.name for book in sites.glob("*/heads.jsonl")}
    assert books == {"children-1", "children-2", "children-3"}
    for file in (sites / "children-2").glob("ledger.db*"):
        file.unlink()
    shutil.copy(before, sites / "children-2" / "ledger.db")
    with pytest.raises(LedgerError, match=r"kept by children-[13]: .* has 1 lines, and had 2"):
        played(config, folder, resume=True)
