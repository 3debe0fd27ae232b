"""`lean3r demo`: reconstruct photographs of a synthetic room and compare the result with the ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lean3r.cli.console import Console, format_table
from lean3r.cli.options import Out, Quiet, Seed, Verbose, Weights, option
from lean3r.cli.reconstruct import Reconstruct
from lean3r.errors import InputError
from lean3r.options import check_seed

if TYPE_CHECKING:
    from lean3r.types import Reconstruction

VIEWS = 8


@dataclass
class Demo:
    """Photograph a synthetic room, reconstruct it, and report how far the result is from the truth.

    See docs/quickstart.md.
    """

    out: Annotated[
        Out, option(help="Folder for the photos and the results; those of an earlier demo are replaced.")
    ] = Path("demo")

    photos: Annotated[Path | None, option("DIR")] = None
    """Reconstruct these pictures instead, without a comparison."""

    weights: Weights = None
    seed: Annotated[Seed, option(help="Random seed of the camera path.")] = 1
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Render the photos unless they are given, reconstruct, compare, and print the output folders."""
        check_seed(self.seed)
        if self.photos is not None:
            if not self.photos.is_dir():
                raise InputError(f"{self.photos} is not a folder; give one with pictures: make demo PHOTOS=DIR")
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
        from lean3r.eval.reconstruction import compare

        figures = compare(scene, truth)
        print("\ncompared with the ground truth\n" + format_table([(name, value) for name, value in figures.items()]))

    def reconstruct(self, photos: Path, out: Path) -> Reconstruction:
        """Reconstruct a folder of photos into `out`, and print `out`."""
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
