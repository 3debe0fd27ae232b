"""LingBot-Map gives the numbers of the official program: every case of the golden folder, by its JSON."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from golden_numbers import golden_folder
from lingbot_cases import find_cases, is_full_size, measure


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = find_cases(golden_folder(metafunc.config))
    params = [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if is_full_size(p) else []) for p in cases]
    metafunc.parametrize("case_file", params or [pytest.param(None, id="none")])


def test_case(case_file: Path | None, golden_dir: Path, synthetic: ModuleType) -> None:
    if case_file is None:
        pytest.skip(f"no cases of LingBot-Map under {golden_dir}")
    found = measure(case_file, synthetic)
    print(case_file.stem, *(f"{name}={share:.2f}" for name, share in found.shares.items()))
    assert not found.missing, "arrays never compared"
    over = {name: share for name, share in found.shares.items() if not share <= 1}
    assert not over, f"times the tolerance: {over}"
