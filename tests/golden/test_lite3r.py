"""Lite3R's release, file by file; cases are whatever files the folder holds, checks are in lite3r_cases/."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import lite3r_cases
import pytest
from golden_numbers import golden_folder
from lite3r_cases import Check

KINDS = ("*.npz", "*.pt.xz", "*.json.gz")


def checks() -> dict[str, Check]:
    """Prefix of a file name -> check, from every module of lite3r_cases."""
    names = [m.name for m in pkgutil.iter_modules(lite3r_cases.__path__)]
    modules = [importlib.import_module(f"{lite3r_cases.__name__}.{name}") for name in names]
    return {prefix: check for module in modules for prefix, check in module.CASES.items()}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder: Path = golden_folder(metafunc.config) / "lite3r"
    known, rows = checks(), []
    for path in sorted(path for kind in KINDS for path in folder.glob(kind)):
        prefix = max((p for p in known if path.name.startswith(p)), key=len, default=None)
        missing = pytest.mark.skip(reason="no check knows this kind of file")
        rows.append(
            pytest.param(None, path, id=path.name, marks=missing)
            if prefix is None
            else pytest.param(known[prefix], path, id=path.name)
        )
    absent = pytest.mark.skip(reason=f"no golden numbers at {folder}: name their folder with --golden DIR")
    metafunc.parametrize(("check", "path"), rows or [pytest.param(None, folder, id="absent", marks=absent)])


def test_lite3r(check: Check, path: Path) -> None:
    check(path)
