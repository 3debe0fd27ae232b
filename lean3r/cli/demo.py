"""`lean3r demo`: photographs of a synthetic room, reconstructed and compared with the truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lean3r.cli.console import Console, format_table
from lean3r.cli.options import Out, Quiet, Seed, Verbose, Weights, check_seed, option
from lean3r.cli.reconstruct import Reconstruct
from lean3r.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from lean3r.data.base import SceneBatch
    from lean3r.types import Reconstruction

VIEWS = 8
SMALL_BASELINE = 0.05  # of the mean depth: pairs nearer than that have no reliable direction


@dataclass
class Demo:
    """Photograph a synthetic room, reconstruct it, and say how far the result is from the truth.

    See docs/quickstart.md.
    """

    out: Annotated[
        Out, option(help="Where the photos and the results go; results of an earlier demo are replaced.")
    ] = Path("demo")

    photos: Annotated[Path | None, option("DIR")] = None
    """Reconstruct these pictures instead; there is no truth to compare with then."""

    weights: Weights = None
    seed: Annotated[Seed, option(help="Moves the photographer.")] = 1
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Make the photos unless they are given, reconstruct, compare, print where the files are."""
        check_seed(self.seed)
        if self.photos is not None:
            if not self.photos.is_dir():
                raise InputError(f"{self.photos} is no folder; give one with pictures: make demo PHOTOS=DIR")
            self.reconstruct(self.photos, self.out / "own")
            return
        console, folder = Console(self.quiet), self.out / "photos"
        with console.stage("photos"):
            from lean3r.data.world.showroom import phone_photos
            from lean3r.export.atomic import atomic_folder
            from lean3r.export.manifest import write_short

            with atomic_folder(folder, overwrite=True) as directory:
                truth = phone_photos(directory, VIEWS, seed=self.seed)
                write_short(directory)
        console.line("", f"{VIEWS} photos of a synthetic room in {folder}")
        scene = self.reconstruct(folder, self.out / "room")
        figures = compare(scene, truth)
        print("\nagainst the truth\n" + format_table([(name, value) for name, value in figures.items()]))

    def reconstruct(self, photos: Path, out: Path) -> Reconstruction:
        """Reconstruct a folder into another and print that."""
        job = Reconstruct(
            [str(photos)],
            out,
            weights=self.weights,
            overwrite=True,
            verbose=self.verbose,
            quiet=self.quiet,
        )
        scene, _ = job.work(Console(self.quiet))
        print(out)
        return scene


def compare(scene: Reconstruction, truth: SceneBatch) -> dict[str, str]:
    """Errors of a reconstruction of all the views of one true scene, as text by name.

    Cameras are compared pair by pair (VGGT convention), depth after one scale for the whole scene.
    """
    import numpy as np
    import torch

    from lean3r.eval.depth_errors import abs_rel
    from lean3r.eval.pose_errors import pose_auc, relative_pose_errors

    cameras, true_cameras = torch.from_numpy(scene.cam_from_world), truth.cam_from_world[0].double()
    true_depth = network_depth(scene, truth.depth[0].numpy())
    known = torch.from_numpy(true_depth > 0)
    small = SMALL_BASELINE * float(true_depth[true_depth > 0].mean())
    errors = relative_pose_errors(cameras, true_cameras)
    auc = pose_auc(cameras, true_cameras, (5, 15, 30), small)
    error = abs_rel(torch.from_numpy(scene.depth), torch.from_numpy(true_depth), known)
    focal = scene.original_intrinsics[:, 0, 0] / truth.intrinsics[0, :, 0, 0].numpy() - 1
    return {
        "rotation": f"{np.median(errors.rotation_deg):.1f} degrees off (median over {len(errors.rotation_deg)} pairs)",
        "direction of motion": f"{np.median(errors.translation_deg):.1f} degrees off",
        "pose AUC at 5, 15, 30": ", ".join(f"{100 * auc[t]:.0f}" for t in (5, 15, 30)) + " of 100",
        "depth": f"{100 * error:.1f} % off (AbsRel after one scale)",
        "focal length": f"{100 * np.median(np.abs(focal)):.1f} % off",
    }


def network_depth(scene: Reconstruction, depth: np.ndarray) -> np.ndarray:
    """True depth [S, h, w] of the original pictures at the pixels of the network's pictures [S, H, W]; 0 on padding."""
    import numpy as np

    height, width = scene.depth.shape[1:]
    result = np.zeros_like(scene.depth)
    for view, source in enumerate(scene.sources):
        sx, sy, ox, oy = source.original_from_network
        rows = np.floor((np.arange(height) + 0.5) * sy + oy).astype(int).clip(0, source.height - 1)
        cols = np.floor((np.arange(width) + 0.5) * sx + ox).astype(int).clip(0, source.width - 1)
        result[view] = depth[view][np.ix_(rows, cols)] * scene.mask[view]
    return result
