"""The audit's fixed sentences: what the figures rest on, what is not shown, what is not claimed."""

from __future__ import annotations

from typing import Final

from protocols.messages import Mode
from secure_natfl.audit.evidence_parts import Assumption
from secure_natfl.report.model import Report

ASSUMPTIONS: Final = (
    Assumption(
        id="honest-noise",
        text="no more clients than planned pool what they know, or drop out, in a group",
        if_it_fails="only the noise of the site itself counts: the isolated ε",
    ),
    Assumption(
        id="custody",
        text="key holders keep their shares, or their key, to themselves",
        if_it_fails="single contributions can be read, under the noise of their site alone",
    ),
    Assumption(
        id="randomness",
        text="the operating system's random numbers are unpredictable",
        if_it_fails="noise and keys can be predicted: nothing is protected",
    ),
    Assumption(
        id="lattice",
        text="ring-LWE is hard for the degree and modulus in use",
        if_it_fails="contributions can be read; their noise stays",
    ),
    Assumption(
        id="software",
        text="every party runs this software, unchanged",
        if_it_fails="what a party does with its own data is its own; others' checks still hold",
    ),
    Assumption(
        id="units",
        text="records of one patient carry one identifier at a site, and patients are not shared",
        if_it_fails="such a patient is charged apart at each identifier and site: the ε add up",
    ),
)

NOT_CLAIMED: Final = (
    "that any law is fulfilled: a clause row points to evidence, and people judge it",
    "that released figures are anonymous data in a legal sense",
    "robustness against poisoning by a client that keeps within its bounds",
    "conformity to any ISO standard for homomorphic encryption",
    "protection of availability, of the models as property, or against side channels",
)


def limits(report: Report) -> tuple[str, ...]:
    """What this evidence does not show."""
    found = [
        "a check that holds says that files agree with each other and with signatures, and that "
        "figures follow from them; it does not say that data was lawful, correct or representative",
        "scores of models come from the report and were not computed again",
        "the text of no clause was read for this mapping unless a date says so",
    ]
    if report.simulated:
        found.insert(
            0,
            "the run was simulated: all parties, keys and data were on one machine, so it shows "
            "what the protocol does and nothing about anybody's custody, organisation or network",
        )
    return tuple(found)


def unverifiable(mode: Mode, report: Report) -> tuple[str, ...]:
    """What nobody can verify from outside, whatever is signed."""
    found = [
        "that keys belong to whom they name: compare them with what each party states elsewhere",
        "that noise was drawn as charged: a sum looks the same without it",
        "that private images are what a site says they are, and that patients are told apart",
        "that keys which last one attempt were destroyed, and that no copy was made",
        "that parties did not pool what they know outside the protocol",
        "that clocks were right: times are the writer's own",
        "that the software which ran is the one whose digest is stated",
    ]
    if mode in ("ckks/decryptor", "ring/decryptor"):
        found.insert(0, "that the decryptor stated the right sum: nobody else has its key")
    if mode == "slots/shared":
        found.insert(0, "that the client which read a sum stated it as it was")
    if report.seeded:
        found.insert(0, "who knows the seed of this run")
    return tuple(found)
