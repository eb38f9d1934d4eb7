"""Mutation score: how many small faults in the privacy core turn its own fast tests red.

`python -m benchmarks.mutation protocols/accounting.py` plants one fault at a time and prints the
score and every fault that no test noticed; `--json` prints one object and nothing else. Without a
path it takes all modules of `SUITES`. Faults are planted in a random order that is always the same,
so that those which fit in `--minutes` per module are a fair sample of all. The operators are those
of Cosmic Ray (`pip install cosmic-ray`): comparisons, arithmetic, numbers, conditions, loops,
decorators. Text of messages and annotations is left as it is.

A fault never reaches the disk: each runs in a process of its own, forked from one that has loaded
the libraries and nothing of the project, whose importer hands out the changed source. A fault
counts as found when a test fails, or when the tests take ten times as long as they should.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType

import numpy as np
from cosmic_ray.ast import get_ast
from cosmic_ray.mutating import MutationVisitor
from cosmic_ray.plugins import get_operator

PRELOADED = (
    "pytest",
    "hypothesis",
    "numpy",
    "scipy.stats",
    "dp_accounting.pld",
    "dp_accounting.rdp",
)
SUITES = {
    "protocols/mechanisms.py": "test_mechanisms.py test_statement.py test_noise_plan.py",
    "protocols/accounting.py": "test_accounting.py",
    "protocols/noise_plan.py": "test_noise_plan.py",
    "protocols/release.py": "test_mechanisms.py test_trained_output.py",
    "protocols/dp_sgd.py": "test_dp_sgd.py test_dp_sgd_charges.py",
}
"""Module → the files of tests/protocols that are its own."""

SLOW = (
    "test_more_steps_a_higher_rate or test_a_second_numerical or test_extreme_plans or "
    "test_a_slower_grid or test_where_no_loss_distribution or test_unlike_steps_compose or "
    "kind0- or kind1- or kind2- or kind3- or kind4- or kind6- or kind7- or forbidden_shortcut or "
    "test_every_plan_keeps"
)
"""Tests of more than about a second, left out."""

OPERATORS = [
    *("NumberReplacer", "AddNot", "RemoveDecorator", "ExceptionReplacer", "ZeroIterationForLoop"),
    *("ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
    *("ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_USub"),
    *(
        f"ReplaceBinaryOperator_{pair}"
        for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "Pow_Mul", "FloorDiv_Mul")
    ),
    *(
        f"ReplaceComparisonOperator_{one}_{other}"
        for one, others in {
            "Lt": ("LtE", "GtE"),
            "LtE": ("Lt", "Gt"),
            "Gt": ("GtE", "LtE"),
            "GtE": ("Gt", "Lt"),
            "Eq": ("NotEq",),
            "NotEq": ("Eq",),
            "Is": ("IsNot",),
            "IsNot": ("Is",),
        }.items()
        for other in others
    ),
]


@dataclass(frozen=True)
class Fault:
    """One changed line of a module; `number` counts from 1."""

    module: str
    operator: str
    number: int
    line: str


class Changed(SourceFileLoader):
    """Loads a module from other text than its file's."""

    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self.text = text

    def get_code(self, fullname: str) -> CodeType:
        """The code of the changed text; no cache is read or written."""
        del fullname
        return self.source_to_code(self.text.encode(), self.path)


class Importer(MetaPathFinder):
    """Finds one module, and hands out its changed text."""

    def __init__(self, path: str, text: str) -> None:
        self.name = path.removesuffix(".py").replace("/", ".")
        self.path, self.text = path, text

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        """The module that is changed, and nothing else."""
        del path, target
        if fullname != self.name:
            return None
        loader = Changed(fullname, self.path, self.text)
        return importlib.util.spec_from_file_location(fullname, self.path, loader=loader)


def faults(module: str) -> Iterator[tuple[Fault, str]]:
    """Every fault of a module, with the module's text that has it."""
    source = Path(module).read_text(encoding="utf-8")
    before = source.splitlines()
    for name in OPERATORS:
        operator, count = get_operator(f"core/{name}")(), 0
        while True:
            visitor = MutationVisitor(count, operator)
            tree = visitor.walk(get_ast(source))
            if not visitor.mutation_applied:
                break
            text, count = tree.get_code(), count + 1
            after = text.splitlines()
            at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
            yield Fault(module, name, at + 1, after[at].strip()), text


def passes(module: str, text: str, limit: float) -> bool:
    """Whether the module's tests pass within `limit` seconds on this text of it."""
    child = os.fork()
    if not child:
        _test(module, text)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


def _test(module: str, text: str) -> None:
    """Run the tests in this process, silently, and leave it."""
    import pytest

    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    sys.meta_path.insert(0, Importer(module, text))
    # Hypothesis is loaded before pytest could rewrite it: what pytest warns of is meant.
    options = "-x -q --tb=no -p no:cacheprovider -W ignore::pytest.PytestAssertRewriteWarning"
    files = [f"tests/protocols/{name}" for name in SUITES[module].split()]
    code = 1
    try:
        code = pytest.main([*options.split(), "-k", f"not ({SLOW})", *files])
    finally:
        os._exit(int(code))


def score(module: str, minutes: float) -> tuple[int, int, list[Fault]]:
    """How many faults a module can have, how many were planted, and those that its tests let pass.

    Stops planting after `minutes`.
    """
    begin = time.monotonic()
    if not passes(module, Path(module).read_text(encoding="utf-8"), 600):
        raise SystemExit(f"the tests of {module} do not pass as it is")
    limit = 30 + 10 * (time.monotonic() - begin)
    every, planted, survivors = list(faults(module)), 0, []
    for place in np.random.default_rng(1).permutation(len(every)):
        if time.monotonic() - begin > 60 * minutes:
            break
        fault, text = every[place]
        planted += 1
        if passes(module, text, limit):
            survivors.append(fault)
            print(f"{module}:{fault.number}: {fault.line}", file=sys.stderr, flush=True)  # noqa: T201
    return len(every), planted, survivors


def prepare() -> None:
    """Load what all children share, and make Hypothesis neither shrink nor remember."""
    for name in PRELOADED:
        importlib.import_module(name)
    from hypothesis import Phase, settings

    settings.register_profile("mutation", database=None, phases=(Phase.explicit, Phase.generate))
    settings.load_profile("mutation")


def main() -> None:
    """Print the score of each module, as a table or as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", default=list(SUITES), help="paths of SUITES")
    parser.add_argument("--minutes", type=float, default=math.inf, help="for each module")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    prepare()
    found = {}
    for module in asked.modules:
        possible, planted, survivors = score(module, asked.minutes)
        found[module] = {
            "possible": possible,
            "planted": planted,
            "found": planted - len(survivors),
            "score": round(1 - len(survivors) / planted, 3),
            "survivors": [asdict(fault) for fault in survivors],
        }
        if not asked.json:
            print(f"{module}: {planted - len(survivors)} of {planted} ({possible}) found")  # noqa: T201
    if asked.json:
        print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
