"""`lean3r reconstruct`: reconstruct pictures or a video, and write a folder of results."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from lean3r.cli.console import Console
from lean3r.cli.flags import Flags, flags, of
from lean3r.cli.options import (
    Device,
    Formats,
    Inputs,
    Json,
    Model,
    Offline,
    Overwrite,
    Plan,
    Quiet,
    Verbose,
    Weights,
    check_found,
    check_named,
    option,
)
from lean3r.cli.summary import summary, summary_rows
from lean3r.errors import UsageError
from lean3r.export.options import ExportOptions
from lean3r.inputs.frames import FrameChoice
from lean3r.options import PointOptions, as_record
from lean3r.pipeline.options import CameraOptions, MemoryOptions, RunOptions
from lean3r.refine.options import RefineOptions, ScaleOptions
from lean3r.stereo.options import StereoOptions

if TYPE_CHECKING:
    from lean3r.group import Group
    from lean3r.inputs.pictures import Pictures
    from lean3r.models.base import Backbone
    from lean3r.pipeline.budget import Budget
    from lean3r.refine.ahead import Ahead
    from lean3r.types import Reconstruction


@dataclass
class Reconstruct:
    """Photos or a video in; cameras, depth and a point cloud out."""

    inputs: Inputs
    out: Annotated[
        Path,
        option("DIR", "-o", "--export-dir", help="Folder to write; must be new or empty, unless --overwrite is given."),
    ]
    model: Annotated[
        Model,
        option(
            help="Which model (`lean3r models`); auto is nano, on a CPU nano-gsa-fp8 from 50 views on; none: depth "
            "from --cameras by stereo alone."
        ),
    ] = "auto"
    weights: Weights = None
    offline: Offline = False
    plan: Plan = None

    loops: Annotated[int | None, option("N")] = None
    """Number of passes through the trunk of a looped model (nano-looped); more are slower."""

    device: Device = "auto"

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the network; auto: bfloat16 on a GPU that has it, and for large models on CPUs that have it."""

    compile: Annotated[bool, option()] = False
    """Compile the network's blocks on first use (torch.compile); worth it for long or repeated work."""

    cuda_graphs: Annotated[bool, option()] = False
    """NVIDIA GPU: replay the network as a CUDA graph, for up to 32 pictures of the same number and size."""

    parallel: Annotated[bool, option()] = False
    """Share the views out among the processes that torchrun starts, for scenes too large for one card."""

    run_options: Annotated[Flags[RunOptions], of(RunOptions)] = field(default_factory=flags(RunOptions))
    memory_options: Annotated[Flags[MemoryOptions], of(MemoryOptions)] = field(default_factory=flags(MemoryOptions))
    frame_choice: Annotated[Flags[FrameChoice], of(FrameChoice)] = field(default_factory=flags(FrameChoice))
    camera_options: Annotated[Flags[CameraOptions], of(CameraOptions)] = field(default_factory=flags(CameraOptions))

    masks: Annotated[Path | None, option("DIR")] = None
    """Folder of masks, DIR/IMG.jpg.png for IMG.jpg (as in COLMAP): black gives no features, depth or points."""

    refine_options: Annotated[Flags[RefineOptions], of(RefineOptions)] = field(default_factory=flags(RefineOptions))
    stereo_options: Annotated[Flags[StereoOptions], of(StereoOptions)] = field(default_factory=flags(StereoOptions))
    scale_options: Annotated[Flags[ScaleOptions], of(ScaleOptions)] = field(default_factory=flags(ScaleOptions))
    point_options: Annotated[Flags[PointOptions], of(PointOptions)] = field(default_factory=flags(PointOptions))

    format: Formats = field(default_factory=list)

    mesh: Annotated[bool, option()] = False
    """Also write a mesh, as GLB and PLY (format mesh)."""

    export_options: Annotated[Flags[ExportOptions], of(ExportOptions)] = field(default_factory=flags(ExportOptions))

    view: Annotated[bool, option()] = False
    """Show the scene in the browser as stages finish, and then until Ctrl-C (docs/how-to/view.md)."""

    overwrite: Overwrite = False

    json: Annotated[Json, option(help="Print a summary as JSON on standard output, instead of the output folder.")] = (
        False
    )
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Reconstruct, write the folder, and print its path, or JSON."""
        self.out = self.out.expanduser()  # no shell does that within quotes
        check_named(self.inputs)
        if not self.parallel:
            return self.lead(None)
        from lean3r.group import Group

        self.check_parallel()
        with Group.join() as group:
            if group.rank == 0:
                return self.lead(group)
            from lean3r.pipeline.together import take_share

            take_share(self.load(group.hear(), None, group), group)

    def check_parallel(self) -> None:
        """UsageError if options are given that only one process can follow."""
        lone = {
            "--compile": self.compile,
            "--cuda-graphs": self.cuda_graphs,
            "--memory": self.memory_options.options.memory,
        }
        for name, value in lone.items():
            if value:
                raise UsageError(
                    f"{name} does not work together with --parallel, whose processes wait for one another inside the "
                    "network; expected one of the two. Leave one out."
                )

    def lead(self, group: Group | None) -> None:
        """What the only process does, or process 0 of a group: everything but the network on the others' views."""
        check_found(self.inputs)
        console = Console(self.quiet)
        if not self.view:
            with self.search_ahead() as ahead:
                _, done = self.work(console, group, ahead)
            print(json.dumps(done) if self.json else self.out)
            return
        from lean3r.view.live import Live

        with Live(self.inputs[0]) as live:
            console.live = live
            console.line("view", f"{live.address} shows the scene as stages finish")
            with self.search_ahead() as ahead:
                scene, done = self.work(console, group, ahead)
            live.show(scene, is_done=True, folder=self.out)
            print(json.dumps(done) if self.json else self.out, flush=True)
            console.line(
                "view", f"{live.address} shows it until Ctrl-C; later: lean3r view {shlex.quote(str(self.out))}"
            )
            live.wait()

    def search_ahead(self) -> AbstractContextManager[Ahead | None]:
        """Inside, photos that will be refined are searched while torch and the model are loaded, above what --memory
        counts."""
        refine = self.refine_options.options
        by_default = self.model in ("auto", "none") or self.model.startswith("nano")
        is_refined = refine.when == "on" or (refine.when == "auto" and by_default)
        is_bounded = self.memory_options.options.memory is not None
        if not is_refined or is_bounded or self.masks is not None or self.parallel or os.cpu_count() == 1:
            return nullcontext()
        from lean3r.refine.ahead import ahead_of_photos

        return ahead_of_photos(self.inputs, self.frame_choice.options.max_views, refine)

    def work(
        self, console: Console, group: Group | None = None, ahead: Ahead | None = None
    ) -> tuple[Reconstruction, dict]:
        """Run without printing to standard output; return the scene, and its summary as JSON-ready values."""
        from lean3r.export import atomic_folder, check_cameras, check_extras, picture_uses, write_all

        formats = self.formats()
        cameras, scale, export = self.camera_options.options, self.scale_options.options, self.export_options.options
        uses = picture_uses(formats)
        export.check(uses)
        export.warn_of_unread(formats)
        export.check_place(scale.gps or scale.positions is not None)
        check_extras(formats)
        # Try the folder first: nobody should wait for a result that cannot be written.
        given = (cameras.cameras, self.masks, self.weights, self.plan, scale.positions)
        inputs = [*self.inputs, *(path for path in given if path is not None)]
        with atomic_folder(self.out, overwrite=self.overwrite, inputs=inputs) as directory:
            from lean3r.pipeline.from_files import Choices, reconstruct_files

            choices = Choices(
                self.frame_choice.options,
                self.run_options.options,
                self.memory_options.options,
                cameras,
                self.refine_options.options,
                self.stereo_options.options,
                scale,
                self.point_options.options,
                self.masks,
                export.shared_camera,
                export.keeps_frames(uses),
                partial(check_cameras, formats, export),
                export.check_map,
            )
            name = reason = ""

            def load(views: int, budget: Budget | None) -> Backbone:
                nonlocal name, reason
                name, reason = self.choose(views)
                if group is not None:
                    group.tell([name] * (group.size - 1))
                return self.load(name, budget, group)

            scene, pictures = reconstruct_files(
                self.inputs,
                choices,
                load,
                console,
                lambda model: self.describe(console, name, reason, model),
                group,
                ahead,
            )
            with console.stage("writing"):
                from lean3r.pipeline.record import with_settings

                settings = {"format": formats, **as_record(scale, export)}
                settings |= {"model_loaded": name, "model_reason": reason}
                scene = with_settings(scene, shlex.join(sys.argv), settings)
                files = write_all(scene, directory, formats, export.with_pictures(pictures, uses, scene.sources))
        done = summary(scene, self.out, [file.relative_to(directory).as_posix() for file in files], console.seconds)
        done |= files.figures
        console.table("summary", summary_rows(scene, done))
        if not self.view and {"ply", "npz", "cameras"} & set(formats):
            console.line("next", f"lean3r view {shlex.quote(str(self.out))}")
        if "colmap" in formats and (folder := self.picture_folder(scene, pictures, done["files"])):
            # COLMAP refuses to start without the name of a database, which need not exist.
            paths = {"import": self.out / "sparse" / "0", "database": self.out / "database.db", "image": folder}
            asked = " ".join(f"--{name}_path {shlex.quote(str(path))}" for name, path in paths.items())
            console.line("next", f"colmap gui {asked}")
        return scene, done

    def formats(self) -> Sequence[str]:
        """The formats to write; UsageError if one is unknown, or shows depth that there will not be."""
        from lean3r.export import DEFAULT_FORMATS, parse_formats, without_depth_formats

        more = ["mesh"] if self.mesh or self.export_options.options.texture else []
        if self.stereo_options.options.dense == "off":
            return without_depth_formats([*self.format, *more])
        return parse_formats([*(self.format or DEFAULT_FORMATS), *more])

    def choose(self, views: int) -> tuple[str, str]:
        """The name of the model to load, and why this one."""
        from lean3r.models import usual_model
        from lean3r.pipeline.devices import resolve_device

        if self.model != "auto":
            return self.model, "as asked for"
        if self.weights is not None or self.plan is not None:
            return "nano", "chosen for the given weights or plan"
        return usual_model(views, resolve_device(self.device).type == "cpu")

    def load(self, name: str, budget: Budget | None, group: Group | None = None) -> Backbone:
        """Load the model by the options."""
        from lean3r.models.nano_looped import set_loops
        from lean3r.pipeline.load import load

        model = load(
            name,
            self.weights,
            self.device if group is None else group.device(self.device),
            self.dtype,
            offline=self.offline,
            plan=self.plan,
            memory=budget,
            compile=self.compile,
            cuda_graphs=self.cuda_graphs,
        )
        if self.loops is not None:
            set_loops(model, self.loops)
        return model

    def describe(self, console: Console, name: str, reason: str, model: Backbone) -> None:
        """Print the model, its plan and its device."""
        from lean3r.pipeline.predict import where

        if not model.SEES:
            console.line("model", f"{name}: no network; known cameras, and depth from stereo alone")
            return
        million = f"{model.parameter_count / 1e6:.1f} M parameters"
        console.line("model", f"{name} ({reason}), {million}; licence of the weights: {model.licence}")
        if model.plan is not None:
            console.line("plan", str(model.plan))
        origin = model.origin
        console.line("device", f"{where(model)}, {str(origin.dtype).removeprefix('torch.')} ({origin.why_dtype})")

    def picture_folder(self, scene: Reconstruction, pictures: Pictures, files: Sequence[str]) -> Path | None:
        """The folder of pictures for the COLMAP model, whose viewer ignores EXIF turns; None if there is none."""
        if any(file.startswith("images/") for file in files):
            return self.out / "images"
        is_turned = any(source.orientation != 1 for source in scene.sources)
        if not pictures.are_loose_files or is_turned or len(pictures.inputs) != 1:
            return None
        homes = (Path(pictures.inputs[0]), Path(pictures.inputs[0]) / "images")
        return next((home for home in homes if (home / pictures.names[0]).is_file()), None)
