"""Backbones give the numbers of the official programs: every case of the golden folder, by its JSON."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from adapters import MODULES, Family
from torch import Tensor

from lean3r.layers.embed import IMAGENET_MEAN, IMAGENET_STD
from lean3r.models import MODELS
from lean3r.models.base import Backbone

LIMIT = 1e-5
CONSTANTS = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
MANIFESTS = {
    "vggt": "vggt-1b",
    "pi3": "pi3",
    "pi3x": "pi3x",
    **{f"da3{name}": f"da3{name}" for name in ("-small", "-base", "-large", "-giant", "mono-large", "metric-large")},
    "da3nested-giant-large": "da3nested-giant-large",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case_file" not in metafunc.fixturenames:
        return
    folder = (metafunc.config.rootpath / metafunc.config.getoption("--golden")).resolve() / "backbones"
    cases = [path for path in sorted(folder.glob("*.json")) if path.with_suffix(".npz").is_file()]
    slow = pytest.mark.slow
    params = [
        pytest.param(p, id=p.stem, marks=[slow] if json.loads(p.read_text())["size"] == "full" else []) for p in cases
    ]
    metafunc.parametrize("case_file", params or [pytest.param(None, id="none")])


@pytest.fixture(scope="session")
def synthetic(golden_dir: Path) -> ModuleType:
    """The module that fills parameters from their official names."""
    spec = importlib.util.spec_from_file_location("synthetic_weights", golden_dir / "synthetic_weights.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.self_check()
    return module


def test_case(case_file: Path | None, golden_dir: Path, synthetic: ModuleType, record_property) -> None:
    if case_file is None:
        pytest.skip(f"no backbone cases under {golden_dir}")
    case = json.loads(case_file.read_text())
    arrays = dict(np.load(case_file.with_suffix(".npz")))
    family: Family = importlib.import_module(f"adapters.{MODULES[case['model']]}").family(case["model"])
    with torch.device("meta"):
        model = family.build(case["constructor"])
    fill(model, synthetic, case["weights"]["seed"])
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: collect(found, name, out))
        for name, module in family.taps(model, case).items()
        if name in arrays
    ]
    inputs = {name[3:]: torch.from_numpy(value) for name, value in arrays.items() if name.startswith("in.")}
    with torch.inference_mode():
        results = family.run(model.eval(), inputs, case)
        found = {name: family.arrange(name, value, case, model) for name, value in found.items()} | results
    for hook in hooks:
        hook.remove()
    errors = {
        name: relative_rms(found[name], value, case["arrays"][name], family.compare.get(name))
        for name, value in arrays.items()
        if not name.startswith("in.") and name in found
    }
    record_property("relative_rms", errors)
    print(case_file.stem, *(f"{name}={error:.1e}" for name, error in errors.items()))
    assert not [name for name in arrays if not name.startswith("in.") and name not in found], "arrays never compared"
    over = {name: error for name, error in errors.items() if not error <= family.limits.get(name, LIMIT)}
    assert not over, f"relative RMS over the limit: {over}"


@pytest.mark.parametrize("name", [name for name in MODELS if name in MANIFESTS])
def test_key_map_covers_manifest(name: str, golden_dir: Path) -> None:
    path = golden_dir / "manifests" / f"{MANIFESTS[name]}.json.gz"
    manifest = json.loads(gzip.decompress(path.read_bytes()))
    official = {key: tuple(shape) for key, shape, _ in manifest["keys"]}
    model_class = MODELS.get(name)
    with torch.device("meta"):
        model: Backbone = model_class(model_class.SIZES[name])
    ours = model.state_dict()
    assert model.KEY_MAP is not None
    written = model.KEY_MAP.write(ours)
    assert {key: tuple(value.shape) for key, value in written.items()} == official
    read, foreign = model.KEY_MAP.read(written)
    assert not foreign
    assert read.keys() == ours.keys()
    assert model.parameter_count == manifest["parameters"]


def fill(model: Backbone, synthetic: ModuleType, seed: int) -> None:
    """Give every parameter its synthetic value, by official key; constants are ImageNet's."""
    assert model.KEY_MAP is not None
    values = {}
    for name, tensor in model.state_dict().items():
        key = model.KEY_MAP.official(name)
        assert key is not None, f"{name} has no official key"
        if synthetic.rule(key, tensor.shape) is None:
            values[name] = torch.tensor(CONSTANTS[key.rpartition(".")[2]]).reshape(tensor.shape)
        else:
            values[name] = torch.from_numpy(synthetic.synthetic_tensor(key, tensor.shape, seed))
    model.load_state_dict(values, assign=True)


def collect(found: dict[str, Tensor], name: str, out: Tensor) -> None:
    """Keep a tapped output; calls in chunks follow one another."""
    found[name] = torch.cat([found[name], out]) if name in found else out.clone()


def relative_rms(ours: Tensor, golden: np.ndarray, entry: dict, compare) -> float:
    """RMS of the difference over the RMS of the golden values, after the change of variable."""
    assert list(ours.shape) == entry["shape"]
    reference = torch.from_numpy(golden)
    if entry["stored"] == "flat":
        ours = ours.flatten()[:: entry["stride"]]
    if compare is not None:
        ours, reference = compare(ours), compare(reference)
    ours, reference = ours.double(), reference.double()
    error = float((ours - reference).square().mean().sqrt())
    return error / float(reference.square().mean().sqrt()) if error else error
