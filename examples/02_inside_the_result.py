"""The library in three lines, and the contents of the result: plain numpy arrays, named and documented.

docs/conventions.md defines axes and poses, docs/python.md lists every field.
"""

import argparse
from pathlib import Path

import numpy as np

import lean3r
from lean3r.data.world.showroom import phone_photos
from lean3r.geometry.lens import Optics

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("examples_out/02"))
parser.add_argument("--weights", type=Path, help="weights other than those that come with nano")


def main() -> None:
    """Reconstruct four photos and inspect every field."""
    options = parser.parse_args()
    phone_photos(options.out / "photos", seed=2, height=144, width=192)

    model = lean3r.load("nano", weights=options.weights)
    scene = lean3r.reconstruct(model, options.out / "photos", frames=lean3r.FrameChoice(max_views=4), resolution=128)
    lean3r.export(scene, options.out / "room", ["npz", "ply"], overwrite=True)

    for name in ("images", "mask", "depth", "conf", "cam_from_world", "intrinsics", "original_intrinsics"):
        array = getattr(scene, name)
        print(f"{name:20} {array.dtype!s:8} {array.shape}")
    print(f"{'points':20} {scene.points.xyz.shape[0]:,} of them, each seen in a view at a pixel")

    # The first camera is the origin of the world, whose y axis points down; poses map world points into each camera.
    assert np.allclose(scene.cam_from_world[0, :3, 3], 0, atol=1e-5)
    assert np.allclose(scene.info["up"]["direction"], (0, -1, 0), atol=1e-5)

    # A point of the cloud, reprojected into its view, lands on its pixel. After refinement the projection includes
    # the lens distortion: `intrinsics` are the pinhole part.
    points, optics = scene.points, Optics.of(scene)
    poses = scene.cam_from_world[points.view]
    in_camera = np.einsum("pij,pj->pi", poses[:, :3, :3], points.xyz) + poses[:, :3, 3]
    pixels = np.empty_like(points.xy)
    for view in range(len(scene.names)):
        seen = points.view == view
        pixels[seen] = optics.project(view, in_camera[seen])
    print(f"{'projection':20} {np.abs(pixels - points.xy).max():.4f} px off at most")

    # Pictures are resized for the network; every view stores the mapping back to the original pixels.
    source = scene.sources[0]
    focal_px = scene.original_intrinsics[0, 0, 0]
    print(f"{'first view':20} {source.name}, {source.width} x {source.height}, focal length {focal_px:.1f} px")


if __name__ == "__main__":
    main()
