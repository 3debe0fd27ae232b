"""Run a golden case of a backbone and measure how far each of its arrays is from the official number.

Used by the test beside it and by benchmarks/parity_table.py, so that both judge in the same way.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from adapters import MODULES, Family
from torch import Tensor

from lean3r.layers.embed import IMAGENET_MEAN, IMAGENET_STD
from lean3r.models.base import Backbone

LIMIT = 1e-5
CONSTANTS = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}


@dataclass(frozen=True)
class Measured:
    """Relative RMS by array name, the limit of each where it is not the usual one, arrays that were not produced."""

    errors: dict[str, float]
    limits: Mapping[str, float]
    missing: list[str]


def find_cases(golden: Path) -> list[Path]:
    """JSON files of all backbone cases in a golden folder, by name."""
    return [p for p in sorted((golden / "backbones").glob("*.json")) if p.with_suffix(".npz").is_file()]


def is_full_size(case_file: Path) -> bool:
    """Whether the case is of a model in its official size."""
    return json.loads(case_file.read_text()).get("size") == "full"


def load_synthetic(golden: Path) -> ModuleType:
    """The module of the golden folder that fills parameters from their official names, checked."""
    spec = importlib.util.spec_from_file_location("synthetic_weights", golden / "synthetic_weights.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.self_check()
    return module


def measure(case_file: Path, synthetic: ModuleType) -> Measured:
    """Build the case's model, fill it, run it and compare every array that the case holds."""
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
    if "images" not in inputs:
        inputs["images"] = pictures(case, synthetic)
    with torch.inference_mode():
        results = family.run(model.eval(), inputs, case)
        found = {name: family.arrange(name, value, case, model) for name, value in found.items()} | results
    for hook in hooks:
        hook.remove()
    wanted = [name for name in arrays if not name.startswith("in.")]
    errors = {
        name: relative_rms(found[name], arrays[name], case["arrays"][name], family.compare.get(name))
        for name in wanted
        if name in found
    }
    return Measured(errors, family.limits, [name for name in wanted if name not in found])


def fill(model: Backbone, synthetic: ModuleType, seed: int) -> None:
    """Give every parameter its synthetic value, by official key; constants are ImageNet's."""
    values = {}
    for name, tensor in model.state_dict().items():
        key = model.KEY_MAP.official(name)
        assert key is not None, f"{name} has no official key"
        if synthetic.rule(key, tensor.shape) is None:
            values[name] = torch.tensor(CONSTANTS[key.rpartition(".")[2]]).reshape(tensor.shape)
        else:
            values[name] = torch.from_numpy(synthetic.synthetic_tensor(key, tensor.shape, seed))
    model.load_state_dict(values, assign=True)


def pictures(case: Mapping[str, Any], synthetic: ModuleType) -> Tensor:
    """The pictures of a case by its seed, for files without them."""
    how = case["images"]
    images = synthetic.synthetic_images(how["seed"], how["views"], how["height"], how["width"])
    return torch.from_numpy(images).reshape(case["arrays"]["in.images"]["shape"])


def collect(found: dict[str, Tensor], name: str, out: Tensor) -> None:
    """Keep a tapped output; calls in chunks follow one another."""
    found[name] = torch.cat([found[name], out]) if name in found else out.clone()


def relative_rms(ours: Tensor, golden: np.ndarray, entry: dict, compare: Callable[[Tensor], Tensor] | None) -> float:
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
