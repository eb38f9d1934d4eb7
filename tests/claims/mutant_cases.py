"""Every planted defect with its check, and every check on what is sound."""

import os
from dataclasses import replace

from protocols.accounting import Event, total_delta
from protocols.client_gaussian import plan_clients
from protocols.mechanisms import NoNoise, TrainedOutput
from protocols.sampler import _table
from secure_natfl.kept_heads import KeptHeads
from secure_natfl.report.words import why_not_private
from secure_natfl.systems.speaking import shard_batch
from tests.claims.mutant_makers import (
    CLIENTS,
    SOUND,
    WIDE,
    Case,
    alone,
    audited,
    bent,
    books,
    checks,
    comb,
    coupled,
    coupling_case,
    defects,
    descent_case,
    descents,
    few,
    figures,
    gradient_case,
    ledger_case,
    ledgers,
    mechanism_case,
    one_seed,
    one_seed_per_site,
    own,
    plan,
    release_case,
    simple_case,
    tight,
    unvalidated_comb,
    weighted,
    wrong,
)

CASES = [
    # Audits.
    audited("half the noise", defects.Noise, 500),
    audited("noise × 0.707", defects.Noise707, 2000),
    audited("no clip", defects.NoClip, 500),
    audited("clip of the sum", defects.ClipOfTheSum, 500),
    audited("add/remove charged for replace", defects.AddOrRemove, 1000),
    Case(
        "four rounds played, one charged",
        checks.leaks,
        lambda: (alone(SOUND), 500, 4, 4),
        lambda: (alone(SOUND), 500, 4, 1),
    ),
    Case(
        "σ forgets the weights",
        checks.leaks,
        lambda: (weighted(), 800),
        lambda: (weighted(defects.forgets_the_weights), 800),
    ),
    Case(
        "colluders and dropouts counted as honest",
        checks.leaks,
        lambda: (few(), 500),
        lambda: (few(defects.counts_all_shares), 500),
    ),
    # Sensitivity, exactly.
    mechanism_case("no clip, exactly", checks.moves_too_far, defects.NoClip),
    mechanism_case("clip per row", checks.moves_too_far, defects.ClipEachRow),
    mechanism_case("clip before the grid", checks.moves_too_far, defects.ClipBeforeGrid),
    mechanism_case("grid of the heads' mean", checks.moves_too_far, defects.GridOfTheMean),
    mechanism_case("clip of the sum, exactly", checks.moves_too_far, defects.ClipOfTheSum),
    mechanism_case("uncharged β", checks.moves_too_far, defects.FreeDenominators),
    mechanism_case("add/remove, exactly", checks.moves_too_far, defects.AddOrRemove),
    mechanism_case("clip at half the norm", checks.moves_less_than_said, defects.ClipAtHalf),
    mechanism_case("NaN becomes a number", checks.takes_damage, defects.TakesNan),
    simple_case(
        "image instead of patient",
        checks.touches_several_teachers,
        defects.by_patient,
        defects.by_image,
    ),
    simple_case(
        "shard heads on a personal backbone",
        figures.one_patient_reaches_other_shards,
        shard_batch,
        wrong.personal_batch,
    ),
    mechanism_case(
        "client-gaussian: half the client",
        figures.absence_moves_too_far,
        wrong.HalfTheClient,
        base=CLIENTS,
    ),
    simple_case(
        "client-gaussian: never refused",
        figures.offers_what_is_worth_nothing,
        plan_clients,
        wrong.always,
    ),
    # The law of the noise.
    mechanism_case("noise × 0.95", checks.has_other_noise, defects.Noise95, os.urandom, base=WIDE),
    mechanism_case(
        "half the noise, exactly", checks.has_other_noise, defects.Noise, os.urandom, base=WIDE
    ),
    mechanism_case(
        "no noise on the denominators",
        checks.has_other_noise,
        defects.NoNoiseOnDenominators,
        os.urandom,
        base=WIDE,
    ),
    mechanism_case(
        "noise cut at two deviations",
        checks.has_other_noise,
        defects.TruncatedNoise,
        os.urandom,
        base=WIDE,
    ),
    mechanism_case(
        "floats of a global generator",
        checks.draws_elsewhere,
        defects.ContinuousNoise,
        os.urandom,
        base=WIDE,
    ),
    Case(
        "one generator for all clients",
        checks.repeats_noise,
        lambda: (WIDE, own),
        lambda: (WIDE, one_seed),
    ),
    Case(
        "one seed for all rounds",
        checks.repeats_noise,
        lambda: (WIDE, own),
        lambda: (WIDE, one_seed_per_site),
    ),
    Case(
        "weights far apart: a comb",
        checks.is_a_comb,
        lambda: comb(19, 4.0, [19, 19, 19, 1]),
        unvalidated_comb,
    ),
    Case(
        "clamp missing from δ",
        checks.clamps_more_than_charged,
        lambda: (tight(replace(WIDE, tail=2.0)), os.urandom),
        lambda: (
            tight(defects.become(defects.UnchargedClamp, replace(WIDE, tail=2.0))),
            os.urandom,
        ),
    ),
    simple_case("table of 64 bits", figures.is_further_than_stated, _table, wrong.coarse),
    simple_case("seed left unsaid", figures.hides_a_seed, why_not_private, wrong.silent),
    # Figures.
    simple_case(
        "forgotten round",
        checks.states_too_little,
        plan(rounds=3),
        defects.forgotten_round(plan(rounds=3)),
    ),
    mechanism_case(
        "others' noise for one's own",
        checks.forgets_who_is_alone,
        defects.OthersCount,
        base=plan().mechanisms["a"],
    ),
    simple_case("unknown figures read as 0", figures.reads_nonsense, Event, wrong.Lenient),
    mechanism_case(
        "no noise costs nothing",
        figures.hides_what_is_unprotected,
        wrong.Free,
        base=NoNoise.for_sites(shards={"a": 5}, clip_norm=2.0, size=8)["a"],
    ),
    simple_case(
        "slack counted once", figures.charges_slack_too_little, total_delta, wrong.charged_once
    ),
    # Spending.
    ledger_case("refund on retry", ledgers.loses_charges, books.Refunding, SOUND),
    ledger_case("runs not added up", ledgers.loses_charges, books.Forgetful, SOUND),
    ledger_case("rounds not added up", ledgers.loses_charges, books.ChargesOnce, SOUND),
    ledger_case("no budget check", ledgers.overspends, books.Unlimited, SOUND, os.urandom),
    ledger_case("refused once written", ledgers.overspends, books.WritesFirst, SOUND, os.urandom),
    release_case("fresh noise on retry", ledgers.varies_on_retry, defects.FreshOnRetry),
    release_case("retry with other answers", ledgers.varies_on_retry, defects.FollowsModels),
    release_case("retry charged again", ledgers.charges_a_retry, defects.ChargesAgain),
    release_case("noise before the charge", ledgers.draws_before_it_charges, defects.DrawsFirst),
    release_case("integers not stored", ledgers.hands_on_what_is_not_stored, defects.KeepsNothing),
    release_case("length tells of data", ledgers.tells_by_its_length, defects.Shortened),
    # The ledger's file, and its heads.
    ledger_case("ledger not flushed", ledgers.is_not_flushed, books.kept_in(books.Unflushed)),
    ledger_case("ledger without guards", ledgers.takes_changes, books.kept_in(books.Unguarded)),
    ledger_case("chain not read", ledgers.uses_what_was_edited, books.kept_in(books.Unchained)),
    ledger_case("integers not hashed", ledgers.uses_what_was_edited, books.kept_in(books.Unhashed)),
    ledger_case("ledger of anybody", ledgers.serves_two, books.Anybodys),
    ledger_case("ledger with two writers", ledgers.serves_two, books.kept_in(books.Shared)),
    simple_case("heads not kept", ledgers.misses_old_copies, KeptHeads, books.Unkept),
    simple_case("heads not compared", ledgers.misses_old_copies, KeptHeads, books.Uncompared),
    simple_case("heads without hashes", ledgers.misses_old_copies, KeptHeads, books.CountsLines),
    # DP-SGD.
    descent_case("dp-sgd: noise × 0.707", descents.has_other_noise, bent.Noise707),
    descent_case("dp-sgd: no clip", descents.leaks, bent.Unclipped),
    descent_case("dp-sgd: clip of the batch", descents.leaks, bent.ClippedBatch, 400, 4),
    descent_case("dp-sgd: replace at add/remove", descents.leaks, bent.ReplaceCharged),
    descent_case("dp-sgd: skipped empty batch", descents.has_other_noise, bent.SkipsEmpty),
    descent_case("dp-sgd: shuffled batches", descents.samples_otherwise, bent.Shuffled),
    descent_case("dp-sgd: steps not counted", descents.goes_on_unpaid, bent.Endless),
    descent_case("dp-sgd: one seed for all steps", descents.repeats_noise, bent.OneSeed),
    descent_case("dp-sgd: NaN in the sum", descents.shows_damage, bent.TakesNan),
    descent_case("dp-sgd: twice the rate", descents.samples_otherwise, bent.TwiceTheRate),
    descent_case("dp-sgd: charged at the end", descents.samples_unpaid, bent.ChargedLast),
    simple_case("dp-sgd: half trained", descents.speaks_too_often, TrainedOutput, bent.Hasty),
    simple_case("dp-sgd: speaks twice", descents.speaks_too_often, TrainedOutput, bent.Repeating),
    simple_case("dp-sgd: trained again", descents.speaks_too_often, TrainedOutput, bent.Forgetful),
    # Gradients of single units.
    gradient_case("half of the gradient", coupled.halved),
    gradient_case("Opacus on channels-last", coupled.opacus),
    coupling_case("loss over the batch", coupled.network, coupled.over_the_batch),
    coupling_case("statistics of the batch", coupled.normalised, coupled.SINGLE),
]

RECORDER: dict[str, tuple[str, ...]] = {
    "buggy mean (count and sum are not both private)": (
        "uncharged β",
        "no noise on the denominators",
        "grid of the heads' mean",
    ),
    "sensitivity miscalibration": (
        "no clip, exactly",
        "clip per row",
        "clip before the grid",
        "clip of the sum, exactly",
        "add/remove, exactly",
        "σ forgets the weights",
        "dp-sgd: clip of the batch",
        "client-gaussian: half the client",
        "Opacus on channels-last",
    ),
    "noise miscalibration": (
        "half the noise",
        "noise × 0.707",
        "noise × 0.95",
        "noise cut at two deviations",
        "colluders and dropouts counted as honest",
        "dp-sgd: noise × 0.707",
    ),
    "double spending": (
        "four rounds played, one charged",
        "forgotten round",
        "runs not added up",
        "rounds not added up",
        "fresh noise on retry",
        "refund on retry",
        "retry with other answers",
        "dp-sgd: steps not counted",
        "dp-sgd: speaks twice",
    ),
    "NaN injection": ("NaN becomes a number", "dp-sgd: NaN in the sum"),
    "data-dependent control flow": (
        "dp-sgd: skipped empty batch",
        "image instead of patient",
        "loss over the batch",
        "shard heads on a personal backbone",
    ),
    # Classes, rows and layout are in the signed plan; what is left to infer is how much is sent.
    "domain inference": ("length tells of data",),
}
"""Kinds of violation that Cebere et al. 2026 (arXiv 2602.17454) test for → defects of that kind."""
