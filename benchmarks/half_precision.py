"""How much does half precision cost? Each output of each backbone in bfloat16 against float32, in decibels.

    python benchmarks/half_precision.py [--golden DIR] [--full da3-large ...] [--device cpu|cuda] [--dtype bfloat16]

`lean3r bench --dtype float32,bfloat16` compares what a user gets, with its own weights; this compares the official
outputs of the golden folder's cases, with the comparisons of docs/parity.md, after the float32 run has agreed with the
golden arrays. These are the tiny cases (with three views, if there are any); --full adds models of official size by
name. Weights are the synthetic ones, which make every branch matter: they are harsher than trained weights. The number
type is autocast's, as `lean3r reconstruct --dtype` runs it. Decibels are 20 log10 of RMS(float32) over RMS(difference):
40 is 1 %; depths and confidences are compared as logarithms. Writes benchmarks/results/half_precision_DEVICE.json.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from common import ROOT, hardware, write_result

sys.path.insert(0, str(ROOT / "tests" / "golden"))
from adapters import MODULES, Family
from backbone_cases import fill, find_cases, is_full_size, load_synthetic, relative_rms
from torch import Tensor

from lean3r.models.base import Backbone
from lean3r.testing import snr_db

AGREE = 1e-4  # GPUs sum in another order, and in TF32 if allowed
Decibels = dict[str, float]
Form = tuple[Callable[[Backbone], Backbone], torch.dtype]
"""What is compared with the model as it is in float32: a change of the model, and the number type of products."""


def decibels_by_case(
    golden: Path, full: Sequence[str], forms: Mapping[str, Form], device: str = "cpu"
) -> Iterator[tuple[str, dict[str, Decibels]]]:
    """Name, and decibels by form and output, of each golden case: reduced ones, and `full` beginnings of names."""
    synthetic = load_synthetic(golden)
    for path in find_cases(golden):
        if not is_full_size(path) or path.stem.startswith(tuple(full)):
            found = decibels_of(path, synthetic, forms, device)
            for form, decibels in found.items():
                print(path.stem, form, *(f"{name}={value}" for name, value in decibels.items()), flush=True)
            yield path.stem, found
            gc.collect()


def decibels_of(path: Path, synthetic, forms: Mapping[str, Form], device: str) -> dict[str, Decibels]:
    """Decibels by form and output of one golden case."""
    case = json.loads(path.read_text())
    arrays = dict(np.load(path.with_suffix(".npz")))
    family: Family = importlib.import_module(f"adapters.{MODULES[case['model']]}").family(case["model"])
    with torch.device("meta"):
        model = family.build(case["constructor"])
    fill(model, synthetic, case["weights"]["seed"])
    model.eval().to(device)
    inputs = {name[3:]: torch.from_numpy(v).to(device) for name, v in arrays.items() if name.startswith("in.")}

    def run(network: Backbone, dtype: torch.dtype) -> dict[str, Tensor]:
        cast = contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)
        with torch.inference_mode(), cast:
            found = family.run(network, inputs, case)
        return {name: value.float().cpu() for name, value in found.items() if name in judged}

    judged = {name for name in arrays if name.startswith("out.") and name not in family.limits}
    exact = run(model, torch.float32)
    for name, value in exact.items():
        error = relative_rms(value, arrays[name], case["arrays"][name], family.compare.get(name))
        assert error <= AGREE, f"{path.stem}: {name} is {error:.1e} from the golden array in float32"
    compare = {name: family.compare.get(name, lambda x: x) for name in exact if name != "out.reference_view"}
    found = {}
    for form, (alter, dtype) in forms.items():
        near = run(alter(model), dtype)
        found[form] = {n[4:]: round(snr_db(change(near[n]), change(exact[n])), 1) for n, change in compare.items()}
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, default=ROOT / "../shared/golden")
    parser.add_argument("--full", nargs="*", default=["da3_small", "da3_large"], help="beginnings of full-size cases")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16"))
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    result: dict = {"hardware": hardware(), "device": options.device, "dtype": options.dtype, "snr_db": {}}
    forms: dict[str, Form] = {options.dtype: (lambda model: model, getattr(torch, options.dtype))}
    for name, found in decibels_by_case(options.golden, options.full, forms, options.device):
        result["snr_db"][name] = found[options.dtype]
    assert result["snr_db"], f"no cases under {options.golden}"
    print(write_result(f"half_precision_{options.device}", result))


if __name__ == "__main__":
    main()
