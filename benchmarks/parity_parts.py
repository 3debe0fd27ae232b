"""How close are mechanisms, roundings, losses and training steps to the official programs? One figure per case.

    python benchmarks/parity_parts.py --golden DIR

Runs the checks of tests/golden on every case of attention/ and lite3r/ in a golden folder (tests/golden/README.md) with
the reference implementations, and keeps the worst figure that each compared: relative RMS of attention, the largest
difference over the largest value elsewhere. A case without a figure was compared exactly or by its test's limit. Any
check that fails stops the run. Writes benchmarks/results/parity_parts.json; takes a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from common import ROOT, hardware, write_result

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "golden"))
import test_attention
import test_fp8
import test_lite3r
import test_losses
from attention_cases import free, gsa, select, sparse
from lite3r_cases import checkpoints, data, evaluation, losses, schedules, trace, training

from lean3r.testing import rms_ratio

MODULES = (free, gsa, select, sparse, test_fp8, checkpoints, data, evaluation, losses, schedules, trace, training)


def rms(actual: torch.Tensor, expected: torch.Tensor, *_: object) -> float:
    """Relative RMS."""
    return rms_ratio(actual, expected)


def largest(actual: Any, expected: Any, *_: object) -> float:
    """The largest difference over the largest finite value."""
    found, wanted = (torch.as_tensor(value).detach().double() for value in (actual, expected))
    finite = found.isfinite() & wanted.isfinite()
    if not finite.any():
        return 0.0
    size = float(wanted[finite].abs().max())
    return float((found - wanted)[finite].abs().max()) / (size or 1)


MEASURES: dict[str, Callable[..., float]] = {"assert_rms": rms, "assert_relative": largest, "compare": largest}
"""Name of an assertion in the modules of checks -> its figure."""


def watched(module: ModuleType, name: str, into: list[float]) -> Callable:
    """The assertion, which also keeps its figure."""
    check, measure = getattr(module, name), MEASURES[name]

    def both(*args: object, **kwargs: object) -> None:
        check(*args, **kwargs)
        into.append(measure(*args))

    return both


def checks(golden: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Name of every case, and its check."""
    known = test_attention.checks()
    for path in sorted((golden / "attention").glob("*.npz")):
        if path.stem.startswith(("fp8_linear", "w4_linear")):
            yield path.stem, lambda path=path: test_fp8.test_golden(path)
        elif path.stem.startswith("kd_loss"):
            yield path.stem, lambda path=path: test_losses.test_attention_distillation(path)
        elif path.stem.startswith("speed3r_loss"):
            yield path.stem, lambda path=path: test_losses.test_point_distillation(path, torch.float64)
        else:
            check, _, slow = known[str(test_attention.longest(known, path.stem))]
            if not slow:  # the whole of Speed3R-Pi3 is in parity.json
                yield path.stem, lambda check=check, path=path: check(path, "reference")
    of_release = test_lite3r.checks()
    for path in sorted(path for kind in test_lite3r.KINDS for path in (golden / "lite3r").glob(kind)):
        prefix = max((p for p in of_release if path.name.startswith(p)), key=len)
        yield f"lite3r/{path.name.partition('.')[0]}", lambda check=of_release[prefix], path=path: check(path)


def main() -> None:
    """Check, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, required=True, metavar="DIR")
    torch.set_num_threads(1)
    cases = {}
    for name, check in checks(parser.parse_args().golden):
        figures: list[float] = []
        with ExitStack() as stack:
            for module in MODULES:
                for assertion in MEASURES.keys() & vars(module).keys():
                    stack.enter_context(patch.object(module, assertion, watched(module, assertion, figures)))
            check()
        cases[name] = float(f"{max(figures):.2e}") if figures else None
        print(f"{name:40} {cases[name]}", flush=True)
    print(write_result("parity_parts", {"hardware": hardware(), "cases": cases}))


if __name__ == "__main__":
    main()
