"""`lean3r reconstruct`: pictures or a video in, a folder of results out."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lean3r.cli.console import Console, group_skips
from lean3r.cli.options import check_seed, option
from lean3r.errors import UsageError
from lean3r.processes import peak_memory_mb

if TYPE_CHECKING:
    from lean3r.export import ExportOptions
    from lean3r.inputs.originals import Originals
    from lean3r.pipeline.budget import Budget
    from lean3r.types import Reconstruction

SHOWN = 3  # views that a warning names in the summary; manifest.json names all


@dataclass
class Reconstruct:
    """Photos or a video in; cameras, depth and a point cloud out."""

    inputs: Annotated[tyro.conf.Positional[list[str]], option("INPUT [INPUT ...]")]
    """Folders, pictures, globs, .zip files or a video."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR", aliases=["-o", "--export-dir"])]
    """Folder to write; must not exist or be empty, unless --overwrite."""

    model: Annotated[str, option("NAME", "-m")] = "nano"
    """Which model; `lean3r models` lists them."""

    weights: Annotated[str | None, option("FILE")] = None
    """Weights other than the model's usual ones: a file, a folder, or hf:OWNER/NAME[@REVISION]."""

    offline: Annotated[bool, option()] = False
    """Use no network: weights come from a file or from what was downloaded before."""

    plan: Annotated[str | None, option("NAME|FILE")] = None
    """Compress the model: gsa, sla, merge, ... (docs/how-to/compress.md), or a plan as a .json file."""

    loops: Annotated[int | None, option("N")] = None
    """How often a model with a looped trunk (nano-looped) runs it: more is slower."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto is an NVIDIA GPU, else an Apple one (mps), else the CPU."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the network; auto is float32 on a CPU, bfloat16 on a GPU."""

    resolution: Annotated[int | None, option("PIXELS")] = None
    """Side of the square that has the area of the network's pictures; by default what suits the model."""

    memory: Annotated[str | None, option("SIZE")] = None
    """Stay within 8GB, 6GiB, ... of memory (of the GPU where that computes), by the mildest change that will do."""

    memory_allow: Literal["exact", "dtype", "plan", "resolution", "views"] = "views"
    """How far --memory may go: smaller chunks (exact), then half precision, 8-bit weights, smaller, fewer pictures."""

    compile: Annotated[bool, option()] = False
    """Compile the network's blocks when they first run (torch.compile): pays for long or repeated work."""

    cuda_graphs: Annotated[bool, option()] = False
    """GPU: record the network's blocks as CUDA graphs, for pictures of one number and size."""

    max_views: Annotated[int | None, option("N")] = None
    """Use at most N views, evenly chosen."""

    fps: Annotated[float | None, option("N")] = None
    """Video: N frames a second."""

    every: Annotated[int | None, option("N", "--interval")] = None
    """Video: every N-th frame."""

    frames: Annotated[int | None, option("N")] = None
    """Video: N frames, evenly chosen."""

    cameras: Annotated[Path | None, option("PATH")] = None
    """Known cameras: cameras.json, transforms.json, a COLMAP model, a trajectory (TUM); matched by name or time."""

    known: Literal["both", "intrinsics", "poses"] = "both"
    """What to take from --cameras; both means whatever is there."""

    intrinsics: Annotated[str | None, option("FX,FY,CX,CY|FILE")] = None
    """Known intrinsics of all pictures, in their pixels: four numbers, or a JSON file (fx, fy, cx, cy, k1, ...)."""

    known_poses: Literal["fixed", "start"] = "fixed"
    """Known poses stay as they are (fixed), or refinement starts from them and changes them (start)."""

    masks: Annotated[Path | None, option("DIR")] = None
    """Black in DIR/IMG.jpg.png gives no features, depth or points of IMG.jpg (COLMAP's names)."""

    keep_sky: Annotated[bool, option()] = False
    """Depth and points for smooth bright regions at the upper border too, which are taken for sky."""

    reference_view: Annotated[str, option("auto|first|middle|INDEX")] = "auto"
    """The view that the network starts from (VGGT and Depth Anything 3); INDEX counts from 0."""

    refine: Literal["auto", "on", "off"] = "auto"
    """Make cameras exact by matches and bundle adjustment; auto: the embedded model, kept only where better."""

    refine_seconds: Annotated[float | None, option("N")] = None
    """Refine for at most N seconds (by default 60 of one processor, and 6 more a picture)."""

    lens: Literal["auto", "simple-pinhole", "pinhole", "simple-radial", "radial", "opencv"] = "auto"
    """Refinement: the camera model; auto: one focal length and one distortion, or what --cameras says."""

    share_lens: Literal["auto", "always", "never"] = "auto"
    """Refinement: one camera for pictures of one size; auto: also of one focal length in EXIF."""

    format: Annotated[tyro.conf.UseAppendAction[list[str]], option("NAME[,NAME ...]", "-f", "--export-format")] = field(
        default_factory=list
    )
    """What to write: cameras, npz, depth, ply, glb, colmap, preview; these by default; nerfstudio, mesh."""

    mesh: Annotated[bool, option()] = False
    """Also write a mesh, as GLB and PLY (format mesh)."""

    scale: Annotated[str | None, option("A,B=METRES")] = None
    """A known distance: two pictures and the metres between their cameras, as IMG_1.jpg,IMG_2.jpg=1.25."""

    gps: Annotated[bool, option()] = False
    """Metres and directions from the GPS in the pictures' EXIF: x east, y down, z north."""

    conf_percentile: Annotated[float, option("PERCENT", "--conf-thresh-percentile")] = 20.0
    """The least confident per cent of the depths give no points."""

    max_points: Annotated[int, option("N", "--num-max-points")] = 1_000_000
    """At most N points in the cloud."""

    shared_camera: Annotated[bool, option()] = False
    """COLMAP, nerfstudio: one camera for all pictures (of one size)."""

    images: Literal["auto", "always", "never"] = "auto"
    """Write the pictures used into images/; auto: those from videos and archives, and where nerfstudio wants them."""

    undistort: Annotated[bool, option()] = False
    """COLMAP, nerfstudio: pinhole cameras, and images/ as these would have taken them."""

    image_factors: Annotated[str, option("N,N,...|none")] = "2,4,8"
    """With --undistort: the pictures also at 1/N of their size, in images_N/, where gsplat and nerfstudio look."""

    colmap_points: Annotated[int, option("N")] = 50_000
    """COLMAP: at most N points of the depth maps, beside the triangulated ones of a refinement."""

    overwrite: Annotated[bool, option()] = False
    """Replace an earlier result in the output folder."""

    seed: Annotated[int, option("N")] = 0
    """Of everything random."""

    json: Annotated[bool, option()] = False
    """Print a summary as JSON on standard output, instead of the output folder."""

    verbose: Annotated[bool, option(None, "-v")] = False
    """Say more, and show the traceback of an unexpected error."""

    quiet: Annotated[bool, option(None, "-q")] = False
    """Say nothing but errors."""

    def run(self) -> None:
        """Reconstruct, write the folder, say what was done: its path, or JSON, on standard output."""
        _, done = self.work(Console(self.quiet))
        print(json.dumps(done) if self.json else self.out)

    def work(self, console: Console) -> tuple[Reconstruction, dict]:
        """The run without its standard output: the scene, and its summary as JSON-ready values."""
        from lean3r.export import DEFAULT_FORMATS, atomic_folder, parse_formats, write_all

        formats = parse_formats([*(self.format or DEFAULT_FORMATS), *(["mesh"] if self.mesh else [])])
        self.check(formats)
        if self.known != "both" and self.cameras is None:
            raise UsageError(f"--known {self.known} chooses parts of --cameras, which is not given.")
        if self.known_poses != "fixed" and (self.cameras is None or self.known == "intrinsics"):
            raise UsageError(f"--known-poses {self.known_poses} is about poses of --cameras, and none are asked for.")
        # The folder is tried first: nobody waits for a result that cannot be written.
        given = (self.cameras, self.masks, self.weights, self.plan)
        inputs = [*self.inputs, *(path for path in given if path is not None)]
        with atomic_folder(self.out, overwrite=self.overwrite, inputs=inputs) as directory:
            with console.stage("loading"):
                from lean3r.models.nano_looped import set_loops
                from lean3r.pipeline.load import load
                from lean3r.pipeline.reconstruct import reconstruct, where

                budget = self.budget()
                model = load(
                    self.model,
                    self.weights,
                    self.device,
                    self.dtype,
                    offline=self.offline,
                    plan=self.plan,
                    memory=budget,
                    compile=self.compile,
                    cuda_graphs=self.cuda_graphs,
                )
                if self.loops is not None:
                    set_loops(model, self.loops)
            million = f"{model.parameter_count / 1e6:.1f} M parameters"
            console.line("model", f"{self.model}, {million}; licence of the weights: {model.licence}")
            if model.plan is not None:
                console.line("plan", str(model.plan))
            console.line("device", f"{where(model)}, {str(model.origin.dtype).removeprefix('torch.')}")
            scene = reconstruct(
                model,
                self.inputs,
                resolution=self.resolution,
                max_views=self.max_views,
                fps=self.fps,
                every=self.every,
                frames=self.frames,
                cameras=self.cameras,
                known=self.known,
                intrinsics=self.intrinsics,
                known_poses=self.known_poses,
                reference_view=int(self.reference_view) if self.reference_view.isdecimal() else self.reference_view,
                conf_percentile=self.conf_percentile,
                max_points=self.max_points,
                seed=self.seed,
                memory=budget,
                refine=self.refine,
                refine_seconds=self.refine_seconds,
                lens=self.lens,
                share_lens="always" if self.shared_camera else self.share_lens,
                masks=self.masks,
                keep_sky=self.keep_sky,
                observer=console,
            )
            scene = self.in_metres(scene)
            scene.info["config"] |= {
                "inputs": self.inputs,
                "format": formats,
                "scale": self.scale,
                "gps": self.gps,
                "shared_camera": self.shared_camera,
                "images": self.images,
                "undistort": self.undistort,
                "image_factors": self.image_factors,
                "colmap_points": self.colmap_points,
            }
            scene.info["command"] = shlex.join(sys.argv)
            with console.stage("writing"):
                files = write_all(scene, directory, formats, self.choices(self.originals(formats)))
        done = summary(scene, self.out, [file.relative_to(directory).as_posix() for file in files], console.seconds)
        console.table("summary", summary_rows(scene, done))
        if pictures := self.pictures(formats):
            folder = shlex.quote(str(self.out / "sparse" / "0"))
            console.line("next", f"colmap gui --import_path {folder} --image_path {shlex.quote(str(pictures))}")
        return scene, done

    def check(self, formats: Sequence[str]) -> None:
        """UsageError where options of the output contradict each other, MissingExtraError where a format needs one,
        InputError where the pictures lack what --gps needs."""
        from lean3r.refine.scale import Distance, read_places, told

        check_seed(self.seed)
        if self.undistort and (self.images == "never" or not {"colmap", "nerfstudio"} & set(formats)):
            raise UsageError(
                "--undistort writes pictures beside colmap or nerfstudio: ask for one, without --images never."
            )
        self.choices(None)
        if self.scale is not None:
            Distance.parse(self.scale)
            if self.gps:
                raise UsageError("--scale and --gps both say what a metre is; choose one.")
        if "mesh" in formats:
            from lean3r.export.mesh import marching_cubes

            marching_cubes()
        if self.gps:
            told(self.files.file_names, read_places(self.files, self.files.file_names))

    def choices(self, originals: Originals | None) -> ExportOptions:
        """What the exporters are told; UsageError where it cannot be."""
        from lean3r.export import ExportOptions

        try:
            factors = () if self.image_factors == "none" else tuple(int(n) for n in self.image_factors.split(","))
        except ValueError as error:
            raise UsageError(f"--image-factors is {self.image_factors}; expected such as 2,4,8, or none.") from error
        return ExportOptions(
            self.shared_camera,
            originals,
            undistort=self.undistort,
            image_factors=factors,
            colmap_points=self.colmap_points,
        )

    @cached_property
    def files(self) -> Originals:
        """The pictures as they are named."""
        from lean3r.inputs.originals import Originals

        return Originals(self.inputs, self.fps, self.every, self.frames, self.max_views)

    def in_metres(self, scene: Reconstruction) -> Reconstruction:
        """The scene in metres where a known distance or GPS was asked for."""
        from lean3r.refine.scale import Distance, read_places, with_distance, with_places

        if self.scale is not None:
            return with_distance(scene, Distance.parse(self.scale))
        if self.gps:
            return with_places(scene, read_places(self.files, scene.names))
        return scene

    def budget(self) -> Budget | None:
        """The budget of memory, and for how many views; UsageError where it is none."""
        if self.memory is None:
            return None
        from lean3r.inputs.listing import find_pictures
        from lean3r.pipeline.budget import Budget
        from lean3r.pipeline.memory import parse_memory

        size = parse_memory(self.memory)
        found = find_pictures(
            self.inputs, fps=self.fps, every=self.every, frames=self.frames, max_views=self.max_views, quiet=True
        )
        return Budget(size, self.memory_allow, writes=True, views=found.count, resolution=self.resolution)

    def originals(self, formats: Sequence[str]) -> Originals | None:
        """The pictures to write beside the COLMAP model or transforms.json, None for none."""
        if not {"colmap", "nerfstudio"} & set(formats):
            return None
        wanted = self.undistort or "nerfstudio" in formats or not self.files.are_loose_files
        if self.images == "never" or (self.images == "auto" and not wanted):
            return None
        return self.files

    def pictures(self, formats: Sequence[str]) -> Path | None:
        """The folder of pictures that goes with the COLMAP model, where there is one."""
        if "colmap" not in formats:
            return None
        if (self.out / "images").is_dir():
            return self.out / "images"
        return Path(self.inputs[0]) if len(self.inputs) == 1 and Path(self.inputs[0]).is_dir() else None


def summary(scene: Reconstruction, out: Path, files: Sequence[str], seconds: Mapping[str, float]) -> dict:
    """What `--json` prints. seconds by stage; memory in MB (10^6 bytes), the largest of the process so far."""
    return {
        "out": str(out),
        "warnings": scene.info.get("warnings", []),
        "views": list(scene.names),
        "skipped": [{"name": name, "reason": reason} for name, reason in scene.skipped],
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "peak_memory_mb": peak_memory_mb(),
        "points": len(scene.points.xyz),
        "scale": scene.scale,
        "refinement": scene.info.get("refinement"),
        "files": sorted(files),
    }


def describe_warning(told: Mapping) -> str:
    """The code of a warning, what it says, and about which views, the first few by name."""
    names = told["views"]
    about = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
    return f"[{told['code']}] {told['text']}" + (f" ({about})" if names else "")


def describe_known(known: Mapping) -> str:
    """What was known of the cameras, and what each part was used for."""
    counts, used = known["views"], known["used"]
    parts = []
    for part, name in (("intrinsics", "intrinsics"), ("cam_from_world", "poses"), ("depth", "depth")):
        if part not in counts:
            continue
        bent = counts.get("distortion", 0) if part == "intrinsics" else 0
        lens = f" (with the lens's distortion: {bent})" if bent else ""
        parts.append(f"known {name} of {counts[part]} views{lens}: {', '.join(used[part]) or 'not used'}")
    return "; ".join(parts)


def describe_refinement(told: Mapping) -> str:
    """How a refinement ended, and the reprojection error before and after."""
    if told["status"] == "kept":
        return f"none, the cameras are as before: {told['reason']}"
    how = "from the predicted cameras" if told["status"] == "refined" else "from matches alone (fallback)"
    error = told["error_px"]
    views = f"{told['trusted']} of {len(told['views'])} views" if told["trusted"] < len(told["views"]) else "all views"
    return f"{views} {how}; reprojection error {error['before']:.2f} -> {error['after']:.2f} px"


def summary_rows(scene: Reconstruction, done: Mapping) -> list[tuple[str, str]]:
    """The table at the end of a run."""
    seconds = done["seconds"]
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())
    gpu = scene.info.get("peak_gpu_memory_mb")
    known, masks = scene.info.get("known"), scene.info.get("masks")
    return [
        *(("warning", describe_warning(told)) for told in done["warnings"]),
        ("views", f"{len(scene.names):,} used"),
        *([("cameras", describe_known(known))] if known else []),
        *([("refinement", describe_refinement(told))] if (told := scene.info.get("refinement")) else []),
        *([("masks", f"{masks['views']:,} of {len(scene.names):,} views have one")] if masks else []),
        *(("skipped", text) for text in group_skips(scene.skipped)),
        ("seconds", f"{sum(seconds.values()):.1f} ({stages})"),
        ("memory", f"{done['peak_memory_mb']:,.0f} MB peak" + (f", {gpu:,.0f} MB on the GPU" if gpu else "")),
        ("points", f"{done['points']:,}, scale: {done['scale']}"),
        ("files", f"{len(done['files'])} in {done['out']}"),
    ]
