"""Backbones give the numbers of the official programs: every case of the golden folder, by its JSON."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from backbone_cases import LIMIT, find_cases, is_full_size, measure
from golden_numbers import golden_folder

from lean3r.models import MODELS
from lean3r.models.base import Backbone

MANIFESTS = {
    "lingbot-map": "lingbot-map",
    "vggt": "vggt-1b",
    "pi3": "pi3",
    "pi3x": "pi3x",
    "speed3r-pi3": "speed3r-pi3",
    **{f"da3{name}": f"da3{name}" for name in ("-small", "-base", "-large", "-giant", "mono-large", "metric-large")},
    "da3nested-giant-large": "da3nested-giant-large",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case_file" not in metafunc.fixturenames:
        return
    cases = find_cases(golden_folder(metafunc.config))
    params = [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if is_full_size(p) else []) for p in cases]
    metafunc.parametrize("case_file", params or [pytest.param(None, id="none")])


def test_case(case_file: Path | None, golden_dir: Path, synthetic: ModuleType) -> None:
    if case_file is None:
        pytest.skip(f"no backbone cases under {golden_dir}")
    measured = measure(case_file, synthetic)
    print(case_file.stem, *(f"{name}={error:.1e}" for name, error in measured.errors.items()))
    assert not measured.missing, "arrays never compared"
    over = {name: error for name, error in measured.errors.items() if not error <= measured.limits.get(name, LIMIT)}
    assert not over, f"relative RMS over the limit: {over}"


@pytest.mark.parametrize("name", [name for name in MODELS if name in MANIFESTS])
def test_key_map_covers_manifest(name: str, golden_dir: Path) -> None:
    path = golden_dir / "manifests" / f"{MANIFESTS[name]}.json.gz"
    if not path.is_file():
        pytest.skip(f"no manifest {path}")
    manifest = json.loads(gzip.decompress(path.read_bytes()))
    official = {key: tuple(shape) for key, shape, _ in manifest["keys"]}
    model_class = MODELS.get(name)
    with torch.device("meta"):
        model: Backbone = model_class(model_class.SIZES[name])
    ours = model.state_dict()
    assert model_class.TELLTALE is not None
    assert official.get(model_class.TELLTALE[0]) == model_class.TELLTALE[1]
    written = model.KEY_MAP.write(ours)
    assert {key: tuple(value.shape) for key, value in written.items()} == official
    read, foreign = model.KEY_MAP.read(written)
    assert not foreign
    assert read.keys() == ours.keys()
    assert model.parameter_count == manifest["parameters"]
