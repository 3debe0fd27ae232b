"""Attention against golden arrays; cases are whatever files the folder holds."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from golden_numbers import golden_folder

Check = Callable[[Path, str], None]

TOPICS = ("select", "sparse", "free", "gsa")  # the modules of attention_cases
ELSEWHERE = ("fp8_linear", "w4_linear", "kd_loss", "speed3r_loss")  # test_fp8.py, test_losses.py


def checks() -> dict[str, tuple[Check, tuple[str, ...], bool]]:
    """Prefix of a file name -> check, the implementations to run it with, and whether it is slow."""
    found = {}
    for topic in TOPICS:
        name = f"attention_cases.{topic}"
        if importlib.util.find_spec(name) is None:
            continue
        module = importlib.import_module(name)
        several = getattr(module, "IMPLEMENTATIONS", {})
        slow = getattr(module, "SLOW", ())
        found |= {p: (check, several.get(p, ("reference",)), p in slow) for p, check in module.CASES.items()}
    return found


def longest(prefixes: dict[str, object], name: str) -> str | None:
    """The longest prefix that a file name starts with."""
    return max((p for p in prefixes if name.startswith(p)), key=len, default=None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder: Path = golden_folder(metafunc.config) / "attention"
    rows = []
    known = checks()
    for path in sorted(folder.glob("*.npz")):
        if path.stem.startswith(ELSEWHERE):
            continue
        prefix = longest(known, path.stem)
        if prefix is None:
            unknown = pytest.mark.skip(reason="no check knows this kind of file")
            rows.append(pytest.param(None, path, "", marks=unknown, id=path.stem))
            continue
        check, implementations, slow = known[prefix]
        marks = [pytest.mark.slow] if slow else []
        rows += [pytest.param(check, path, how, id=f"{path.stem}-{how}", marks=marks) for how in implementations]
    if not rows:
        skip = pytest.mark.skip(reason=f"no golden numbers at {folder}: name their folder with --golden DIR")
        rows = [pytest.param(None, folder, "", marks=skip, id="absent")]
    metafunc.parametrize(("check", "path", "implementation"), rows)


def test_golden(check: Check, path: Path, implementation: str) -> None:
    if implementation == "triton":
        pytest.importorskip("triton", reason="triton is not installed")
    check(path, implementation)
