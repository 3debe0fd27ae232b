"""A folder of photos in; cameras, depth and a point cloud out.

The photos are rendered here, of a room in the synthetic world, so that the ground truth is known. With your own
pictures you need only the second half, and one command does the same: `lean3r reconstruct photos/ -o out`.
"""

import argparse
from pathlib import Path

import lean3r
from lean3r.data.world.showroom import phone_photos
from lean3r.eval.reconstruction import compare

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("examples_out/01"))
parser.add_argument("--weights", type=Path, help="weights other than those that come with nano")


def main() -> None:
    """Photograph, reconstruct, write, compare."""
    options = parser.parse_args()
    photos = options.out / "photos"
    truth = phone_photos(photos, seed=1, height=240, width=320)
    print("photos:", ", ".join(sorted(path.name for path in photos.iterdir())))

    model = lean3r.load("nano", weights=options.weights)
    scene = lean3r.reconstruct(model, photos)
    room = lean3r.export(scene, options.out / "room", overwrite=True)

    print(f"{len(scene.names)} views, {len(scene.points.xyz):,} points, scale: {scene.scale}")
    print("files:", ", ".join(sorted(path.name for path in room.iterdir())))
    for name, value in compare(scene, truth).items():
        print(f"against the truth, {name}: {value}")


if __name__ == "__main__":
    main()
