"""Blocks removed from nano (`lean3r compress --calibrate --remove`, then `--fit`) against the whole network.

    python benchmarks/removed.py [--counts 1 2] [--scenes 24] [--calibrations 3]

For each number of blocks: the best set of blocks by compress/removal.choose_blocks, on 16 pictures of one scene. It is
scored without repair, with matrices fitted on the same pictures, and with matrices fitted on 16 scenes of 8 views, for
each of several scenes of calibration. Scored are other scenes, of 8 views. Differences from the whole network are means
with 95 per cent intervals; each scene is compared with itself. Writes benchmarks/results/removed.json.
"""

from __future__ import annotations

import argparse
from typing import Any

from accuracy import check_scoring, held_out
from calibrated import means, minus, shown
from common import hardware, write_result
from paired import per_scene

import lean3r
from lean3r.compress import compress, remove
from lean3r.compress.removal import choose_blocks
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.pipeline.calibration import outputs_of
from lean3r.pipeline.predict import predict
from lean3r.types import Views

SEED = 77  # of the scenes for calibration
VIEWS, PICTURES, SCENES = 8, 16, 16


def main() -> None:
    """Choose, fit, score and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--calibrations", type=int, default=3)
    options = parser.parse_args()
    check_scoring()
    model = lean3r.load("nano").eval()
    batches = held_out(VIEWS, options.scenes)
    world = SyntheticWorld(seed=SEED, height=240, width=240)
    one = [Views(world.batch(index, 1, views=PICTURES).images) for index in range(options.calibrations)]
    many = [Views(world.batch(100 + index, SCENES, views=VIEWS).images) for index in range(options.calibrations)]
    dense = per_scene(model, batches)
    result = {"hardware": hardware(), "views": VIEWS, "scenes": options.scenes, "dense": means([dense])}
    rows: list[dict[str, Any]] = []
    for count in options.counts:
        plans = [choose_blocks(model, lambda m, v=v: outputs_of(m, v), count)[0].plan for v in one]
        forms = {
            "not repaired": [compress(model, plan) for plan in plans],
            "fitted on 16 pictures": [remove(model, p, run_on(v)) for p, v in zip(plans, one, strict=True)],
            "fitted on 16 scenes": [remove(model, p, run_on(v)) for p, v in zip(plans, many, strict=True)],
        }
        for form, networks in forms.items():
            ours = [per_scene(network.eval(), batches) for network in networks]
            row = {"removed": count, "form": form, "plans": [str(plan) for plan in plans], **means(ours)}
            share = networks[0].parameter_count / model.parameter_count
            rows.append(row | {"parameters": round(share, 3), "minus_dense": minus(ours, dense)})
            print(f"{count} {form:22s} {shown(row, rows[-1]['minus_dense'])}", flush=True)
        path = write_result("removed", result | {"rows": rows})
    print(path)


def run_on(views: Views) -> Any:
    """Runs a network on pictures."""
    return lambda network: predict(network, views)


if __name__ == "__main__":
    main()
