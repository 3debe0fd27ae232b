"""How much does half precision cost? Each output of each backbone in bfloat16 against float32, in decibels.

    python benchmarks/half_precision.py [--golden DIR] [--full da3-large ...] [--device cpu|cuda] [--dtype bfloat16]

Reduced models are the golden folder's tiny cases (with three views, if there are any); --full adds models of official
size by name. Weights are the synthetic ones, which make every branch matter: they are harsher than trained weights.
The number type is autocast's, as `lean3r reconstruct --dtype` runs it. Decibels are 20 log10 of RMS(float32) over
RMS(difference): 40 is 1 %; depths and confidences are compared as logarithms, as in docs/parity.md. Before that, the
float32 run must agree with the golden arrays. Writes benchmarks/results/half_precision_DEVICE.json.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from common import hardware, write_result

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "golden"))
from adapters import MODULES, Family
from backbone_cases import fill, find_cases, is_full_size, load_synthetic, relative_rms
from torch import Tensor

from lean3r.testing import snr_db

ROOT = Path(__file__).parents[1]
AGREE = 1e-4  # GPUs sum in another order, and in TF32 if allowed


def outputs_by_type(path: Path, synthetic, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Decibels by output of one golden case."""
    case = json.loads(path.read_text())
    arrays = dict(np.load(path.with_suffix(".npz")))
    family: Family = importlib.import_module(f"adapters.{MODULES[case['model']]}").family(case["model"])
    with torch.device("meta"):
        model = family.build(case["constructor"])
    fill(model, synthetic, case["weights"]["seed"])
    model.eval().to(device)
    inputs = {name[3:]: torch.from_numpy(v).to(device) for name, v in arrays.items() if name.startswith("in.")}

    def run(kind: torch.dtype) -> dict[str, Tensor]:
        cast = contextlib.nullcontext() if kind == torch.float32 else torch.autocast(device, kind)
        with torch.inference_mode(), cast:
            found = family.run(model, inputs, case)
        return {
            name: value.float().cpu() for name, value in found.items() if name in arrays and name.startswith("out.")
        }

    exact, near = run(torch.float32), run(dtype)
    judged = [name for name in exact if name not in family.limits]
    for name in judged:
        error = relative_rms(exact[name], arrays[name], case["arrays"][name], family.compare.get(name))
        assert error <= AGREE, f"{path.stem}: {name} is {error:.1e} from the golden array in float32"
    compare = {name: family.compare.get(name, lambda x: x) for name in judged}
    found = {n[4:]: snr_db(compare[n](near[n]), compare[n](exact[n])) for n in judged if n != "out.reference_view"}
    return {name: round(value, 1) for name, value in found.items()}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, default=ROOT / "../shared/golden")
    parser.add_argument("--full", nargs="*", default=["da3_small", "da3_large"], help="beginnings of full-size cases")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16"))
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    synthetic = load_synthetic(options.golden)
    result: dict = {"hardware": hardware(), "device": options.device, "dtype": options.dtype, "snr_db": {}}
    for path in find_cases(options.golden):
        if is_full_size(path) and not path.stem.startswith(tuple(options.full)):
            continue
        decibels = outputs_by_type(path, synthetic, options.device, getattr(torch, options.dtype))
        result["snr_db"][path.stem] = decibels
        print(path.stem, *(f"{name}={value}" for name, value in decibels.items()), flush=True)
        gc.collect()
    assert result["snr_db"], f"no cases under {options.golden}"
    print(write_result(f"half_precision_{options.device}", result))


if __name__ == "__main__":
    main()
