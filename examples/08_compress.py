"""Compress a model by a plan, save it with the plan inside, load it again, reconstruct, and print its density.

nano's own weights were trained with dense attention: without training for the plan, its predictions change.
"""

import argparse
from pathlib import Path

import lean3r
from lean3r.attention.base import recording
from lean3r.data.world.showroom import phone_photos

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("examples_out/08"))
parser.add_argument("--weights", type=Path, help="weights other than those that come with nano")

PLAN = {
    "name": "last two",
    "steps": [{"target": "global blocks 1-2", "mechanism": "merge", "settings": {"ratio": 0.5}, "dense_below": 100}],
}


def main() -> None:
    """Dense and compressed, side by side."""
    options = parser.parse_args()
    phone_photos(options.out / "photos", 4, seed=2, height=144, width=192)

    model = lean3r.load("nano", weights=options.weights)
    fast = lean3r.compress(model, PLAN)  # or a name, such as "gsa", or a JSON file; shares model's parameters
    file = options.out / "nano-merged.safetensors"
    file.unlink(missing_ok=True)
    lean3r.save(fast, file)
    again = lean3r.load("nano", weights=file)  # the file includes the plan

    for name, network in (("dense", model), ("merged", again)):
        with recording() as log:
            scene = lean3r.reconstruct(network, options.out / "photos", resolution=128)
        said = ", ".join(f"{100 * record.density:.0f} %" for record in log if record.density is not None) or "all"
        plan = scene.info["plan"] and scene.info["plan"]["name"]
        print(f"{name:8} plan {plan}, pairs attended to: {said}; {len(scene.points.xyz):,} points")


if __name__ == "__main__":
    main()
