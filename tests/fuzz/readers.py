"""The table of readers: what each is fed, how it reads, and its share of the cases."""

from __future__ import annotations

import contextlib
import io
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz import samples
from fuzz.mutate import WORDS, damaged
from fuzz.samples import Files
from lean3r.data import DATASETS
from lean3r.errors import LeanError


@dataclass(frozen=True)
class Reader:
    """`files` gives the sound files of a case, `read` reads a folder of damaged ones and returns whether something was
    skipped; `cases` is its share of a full run. Where `is_damaged` is False the files stay as they are."""

    cases: int
    files: Callable[[random.Random], Files]
    read: Callable[[Path, random.Random], object]
    is_damaged: bool = True


def write_case(reader: Reader, folder: Path, rng: random.Random) -> None:
    """The files of one case, one or two of them damaged."""
    files = reader.files(rng)
    hit = rng.sample(sorted(files), min(len(files), rng.choice((1, 1, 2)))) if reader.is_damaged else []
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damaged(content, name, rng) if name in hit else content)


def read_pictures(folder: Path, _: random.Random) -> bool:
    """As a run does: for the network, for its places, whole, and written again."""
    from lean3r.inputs.pictures import Pictures
    from lean3r.refine.scale import read_places

    pictures = Pictures(folder)
    names = [source.name for source in pictures.views(resolution=96, patch=16).sources]
    read_places(pictures, names)
    for _, image in pictures.read(names, 64):
        image.load()
    pictures.write(names, folder / "out")
    return bool(pictures.skipped)


def read_named(name: str) -> Callable[[Path, random.Random], bool]:
    """Pictures from one file of the folder, such as an archive or a video."""

    def read(folder: Path, _: random.Random) -> bool:
        from lean3r.inputs.pictures import Pictures

        (path,) = folder.glob(name)
        pictures = Pictures(path)
        names = [source.name for source in pictures.views(resolution=96, patch=16).sources]
        pictures.write(names, folder / "out")
        return bool(pictures.skipped)

    return read


def read_cameras(folder: Path, _: random.Random) -> None:
    """As known cameras, by the folder and by the file."""
    from lean3r.inputs.cameras import read_given

    for path in (folder, *sorted(folder.iterdir())):
        with contextlib.suppress(LeanError):
            given = read_given(path)
            given.match(["a.png", "b.png"])
            for camera in given.cameras:
                camera.intrinsics_of(96, 72)
    read_given(folder)


def read_trajectory(folder: Path, _: random.Random) -> None:
    """As known cameras."""
    from lean3r.inputs.cameras import read_given

    read_given(folder / "poses.txt")


def read_colmap(folder: Path, rng: random.Random) -> None:
    """As known cameras and as the truth of a scene."""
    from lean3r.data.sets.colmap import read_cameras as read_truth

    read_cameras(folder, rng)
    read_truth(folder)


def read_predictions(folder: Path, _: random.Random) -> None:
    """As the predictions for two pictures, and what is said about them."""
    from lean3r.eval.predicted.reading import read

    predicted = read(folder, ["a.png", "b.png"])
    predicted.problems()
    if predicted.depth is not None:
        predicted.depth_at(0, 72, 96, "bilinear")


def read_result(folder: Path, _: random.Random) -> None:
    """As a scene that pictures are added to."""
    from lean3r.grow.album import additions
    from lean3r.grow.memory import read_memory
    from lean3r.grow.result import read_result as read

    result = read(folder)
    additions(result.manifest)
    read_memory(folder, result.scene.names, result.scene.depth.shape)


def read_viewed(folder: Path, _: random.Random) -> None:
    """As the page of a result, with all of its parts."""
    from lean3r.view.folder import read_content
    from lean3r.view.packing import Package
    from lean3r.view.page import one_file

    for _ in one_file([Package(read_content(folder), most=50, in_one_file=True)]):
        pass


def read_weights(folder: Path, _: random.Random) -> None:
    """All tensors."""
    from lean3r.models.weight_files import open_weights

    stored = open_weights(folder)
    for _, value in stored.read(stored.files):
        value.clone()


def read_plan(folder: Path, _: random.Random) -> None:
    """A compression plan."""
    from lean3r.compress.plan import resolve_plan

    resolve_plan(folder / "plan.json")


def read_config(folder: Path, _: random.Random) -> None:
    """A training config."""
    from lean3r.train.config import TrainConfig

    TrainConfig.from_json((folder / "config.json").read_bytes().decode("utf-8", "replace"))


def read_checkpoints(folder: Path, _: random.Random) -> None:
    """The newest that is whole."""
    from lean3r.train.checkpoints.state import load_checkpoint

    with contextlib.redirect_stderr(io.StringIO()):
        load_checkpoint(folder)


def read_report(folder: Path, _: random.Random) -> None:
    """A result, as far as it is left, as a page."""
    from html.parser import HTMLParser

    from lean3r.quality import report_of

    HTMLParser().feed(report_of(folder))


def read_positions(folder: Path, _: random.Random) -> None:
    """Positions from a table."""
    from lean3r.refine.positions import read_positions

    read_positions(folder / "positions.csv", ["a.png", "b.png"])


def read_set(name: str) -> Callable[[Path, random.Random], None]:
    """All scenes and views of a data set, and what `lean3r data check` says."""

    def read(folder: Path, _: random.Random) -> None:
        from data import tiny

        kind: Any = DATASETS.get(name)
        kind.looks_like(folder)
        kind.problems(folder)
        scenes = kind(folder, **tiny.WRITERS[name].options)
        for scene in range(len(scenes)):
            with contextlib.suppress(LeanError):
                scenes.covisibility(scene)
            for view in range(scenes.scene(scene).views):
                with contextlib.suppress(LeanError):
                    scenes.view(scene, view)

    return read


OPTIONS = (
    "--resolution", "--max-views", "--fps", "--every", "--frames", "--scale", "--seed", "--conf-percentile",
    "--max-points", "--refine-seconds", "--colmap-points", "--reference-view", "--memory", "--image-factors",
    "--model", "--plan", "--cameras", "--masks", "--format",
)  # fmt: skip


def run_command(folder: Path, rng: random.Random) -> None:
    """`lean3r reconstruct` with values that make no sense; it must not call them a bug of its own."""
    from lean3r.cli.main import run

    logging.getLogger("lean3r").setLevel(logging.CRITICAL)
    argv = ["reconstruct", str(folder), "-o", str(folder / "out"), "--refine", "off", "--format", "cameras", "--quiet"]
    for option in rng.sample(OPTIONS, rng.choice((1, 1, 2))):
        words = ("1e300", "9" * 30, "-5", "a.png,b.png=1e300", "a.png,b.png=1", "1000000", "2", "56", *WORDS_OF_TEXT)
        argv += [option, rng.choice(words)]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = run(argv)
    if code == LeanError.exit_code:
        raise AssertionError(f"{argv[9:]}: {said.getvalue().strip()[-300:]}")
    if code:
        raise LeanError(said.getvalue())


WORDS_OF_TEXT = [word.decode(errors="ignore").replace("\0", "") for word in WORDS]
PLAN = (
    b'{"format": 1, "name": "x", "steps": [{"quantize": "int8", "target": "all", "except": ["heads"], "settings": {}}]}'
)
SETS = sorted(path.stem for path in (Path(__file__).parents[1] / "data" / "tiny").glob("*.py") if path.stem in DATASETS)


def config(_: random.Random) -> Files:
    """A sound training config."""
    from lean3r.train.config import Stage, TrainConfig

    return {"config.json": TrainConfig("x", 1, (Stage(200, 56, 56, (2,), 2),)).to_json().encode()}


def plan(_: random.Random) -> Files:
    """A sound compression plan, of both kinds of steps."""
    from lean3r.compress import PLANS

    return {"plan.json": PLANS.get("gsa-fp8")().to_json().encode()}


def no_files(_: random.Random) -> Files:
    """Two pictures."""
    return {"a.png": samples.encoded("png"), "b.jpg": samples.encoded("jpeg")}


def exif(rng: random.Random) -> Files:
    """A JPEG whose EXIF alone is damaged, and a PNG whose EXIF follows its pixels."""
    from PIL import Image

    kind = rng.choice(("JPEG", "WEBP", "PNG"))
    file = io.BytesIO()
    with Image.open(io.BytesIO(samples.encoded("png"))) as image:
        image.load()
        image.save(file, kind, exif=damaged(samples.located(), "exif", rng)[:60_000])
    return {"odd.jpg": file.getvalue(), "sound.png": samples.encoded("png")}


READERS: dict[str, Reader] = {
    **{
        f"picture/{kind}": Reader(190, lambda _, k=kind: {"a.jpg": samples.encoded(k)}, read_pictures)
        for kind in samples.PICTURES
    },
    "exif": Reader(500, exif, read_pictures, is_damaged=False),
    **{
        f"video/{suffix}": Reader(160, lambda _, s=suffix: {f"clip.{s}": samples.clip(s)}, read_named("clip.*"))
        for suffix in samples.VIDEOS
    },
    "zip": Reader(600, lambda _: {"photos.zip": samples.archive()}, read_named("*.zip")),
    "colmap/binary": Reader(900, lambda _: samples.colmap("bin"), read_colmap),
    "colmap/text": Reader(600, lambda _: samples.colmap("txt"), read_colmap),
    "cameras.json": Reader(450, lambda _: samples.cameras_json(), read_cameras),
    "transforms.json": Reader(450, lambda _: samples.transforms_json(), read_cameras),
    "tum": Reader(150, lambda _: samples.trajectory(), read_trajectory),
    **{
        f"predictions/{form}": Reader(60, lambda _, f=form: samples.predictions(f), read_predictions)
        for form in ("npz", "tum", "kitti", "euroc", "ply", "ply/ascii")
    },
    **{
        f"depth/{suffix}": Reader(60, lambda _, s=suffix: samples.maps(s), read_predictions)
        for suffix in ("npy", "npz", "exr", "pfm", "tiff", "png")
    },
    "result": Reader(300, lambda _: samples.result(), read_result),
    "report": Reader(200, lambda _: samples.result(), read_report),
    "positions": Reader(
        200, lambda _: {"positions.csv": b"name;lat;lon;alt\r\na.png;46.5;-91.25;198\r\n\"b.png\";46.6;-91;\r\n"},
        read_positions,
    ),
    "view": Reader(150, lambda _: samples.viewed(), read_viewed),
    "safetensors": Reader(450, lambda _: samples.weights("safetensors"), read_weights),
    "index": Reader(350, lambda _: samples.weights("index"), read_weights),
    "pt": Reader(350, lambda _: samples.weights("pt"), read_weights),
    "pt/legacy": Reader(350, lambda _: samples.weights("legacy"), read_weights),
    "pt/odd": Reader(
        22, lambda rng: rng.choice([samples.pickled(), *map(samples.odd_weights, range(samples.ODD_WEIGHTS))]),
        read_weights, is_damaged=False,
    ),
    "plan": Reader(350, plan, read_plan),
    "config": Reader(250, config, read_config),
    "checkpoint": Reader(300, lambda _: samples.checkpoint(), read_checkpoints),
    **{f"set/{name}": Reader(130, lambda _, n=name: samples.data_set(n), read_set(name)) for name in SETS},
    "command": Reader(60, no_files, run_command, is_damaged=False),
}  # fmt: skip
