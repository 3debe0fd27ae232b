"""A COLMAP model for Gaussian splatting and everything else that reads COLMAP, checked by reading it back.

Cameras have the size of the original pictures, images their original names, and points their observations in pixels.
"""

import argparse
from pathlib import Path

import numpy as np
import pycolmap

import lean3r
from lean3r.data.world.showroom import phone_photos

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("examples_out/03"))
parser.add_argument("--weights", type=Path, help="weights other than those that come with nano")


def main() -> None:
    """Reconstruct, export to COLMAP, read back, compare the two."""
    options = parser.parse_args()
    phone_photos(options.out / "photos", seed=3, height=192, width=144)
    model = lean3r.load("nano", weights=options.weights)
    scene = lean3r.reconstruct(model, options.out / "photos", frames=lean3r.FrameChoice(max_views=5), resolution=128)
    folder = lean3r.export(scene, options.out / "room", "colmap", overwrite=True) / "sparse" / "0"

    colmap = pycolmap.Reconstruction(folder)
    print(f"{colmap.num_images()} images, {colmap.num_points3D():,} points in {folder}")
    print(f"mean reprojection error {colmap.compute_mean_reprojection_error():.2f} px")
    for view, name in enumerate(scene.names):
        image = colmap.find_image_with_name(name)
        camera = colmap.cameras[image.camera_id]
        source = scene.sources[view]
        assert (camera.width, camera.height) == (source.width, source.height)
        assert np.allclose(camera.calibration_matrix(), scene.original_intrinsics[view])
        assert np.allclose(image.cam_from_world().matrix(), scene.cam_from_world[view][:3], atol=1e-6)
        print(f"{name}: {camera.width} x {camera.height} {camera.model.name}, {image.num_points3D} points")


if __name__ == "__main__":
    main()
