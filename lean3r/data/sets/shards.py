"""Data sets packed into a few large files: tar shards, as in webdataset, and an index for access to any view.

A sample of a shard is a scene, or a run of a long one: cameras.json, VIEW.jpg and VIEW.depth.png for each view, and
covisibility.npy if the set has scores. Depth is 16-bit on a logarithmic scale between the `near` and `far` of its
view in cameras.json: depth = near * (far / near) ** ((value - 1) / 65534), 0 is unknown. All scenes of a shard have
the same orientation and similar length.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from PIL import Image

from lean3r.data.sampling.augment import cut
from lean3r.data.sets.formats.files import inside, naming, read_array, read_text
from lean3r.data.sets.formats.maps import no_depth, zero_unknown
from lean3r.data.sets.scenes import Camera, RawView, SceneInfo, SceneSet, check_camera
from lean3r.errors import InputError, MissingExtraError, UsageError
from lean3r.inputs.decoding import FORMATS
from lean3r.json_text import parse_json

if TYPE_CHECKING:
    from webdataset.writer import TarWriter

INDEX, FORMAT = "index.json", "lean3r shards 1"
_LEVELS = 65534
_QUALITY = 95
_CACHED = 64


class CameraRow(TypedDict):
    """A view in cameras.json: its camera, and the depths of the lowest and highest level of its PNG."""

    K: list[list[float]]
    cam_from_world: list[list[float]]
    width: int
    height: int
    near: float
    far: float


class SceneRow(TypedDict):
    """A sample in the index; members: [offset, size] in bytes of its files in the shard."""

    id: str
    views: int
    width: int
    height: int
    shard: str
    members: dict[str, list[int]]


class Index(TypedDict):
    """index.json: the original set, sizes of the shards in bytes, views that were left out, and samples."""

    format: str
    set: str
    licence: str
    source: str
    is_metric: bool
    is_ordered: bool
    has_depth: bool
    shards: dict[str, int]
    skipped: list[str]
    scenes: list[SceneRow]


class Shards(SceneSet):
    """Scenes of a folder written by `lean3r data pack`. is_metric, is_ordered, has_depth, licence and source are those
    of the original set, and so is `label`; normals are not stored."""

    name = "shards"
    title = "packed shards"
    licence = "that of the original set"
    source = "`lean3r data pack ROOT -o DIR`, from any other set"
    layout = "index.json and *.tar, as `lean3r data pack` writes them"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        index = _index(self.root)
        with naming(self.root / INDEX):
            self.packed, self.licence, self.source = index["set"], index["licence"], index["source"]
            self.is_metric, self.is_ordered = index["is_metric"], index["is_ordered"]
            self.has_depth = index["has_depth"]
            rows = [(inside(self.root, row["shard"]), row) for row in index["scenes"] if _is_row(row)]
            self.rows = [row for path, row in rows if path.is_file()]
        if not self.rows:
            raise InputError(f"no shard listed in {self.root / INDEX} exists; expected {self.layout}")
        self._cameras: OrderedDict[int, list[CameraRow]] = OrderedDict()

    @property
    def label(self) -> str:
        """The name of the packed set."""
        return self.packed

    @property
    def ids(self) -> list[str]:
        """Names of the scenes."""
        return [row["id"] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def scene(self, index: int) -> SceneInfo:
        """Name and number of views of a scene, from the index."""
        return SceneInfo(self.rows[index]["id"], self.rows[index]["views"])

    def camera(self, scene: int, view: int) -> Camera:
        """The camera of a view, from cameras.json of its scene."""
        with naming(self.root / self.rows[scene]["shard"]):
            row = self._rows_of(scene)[view]
            k, pose = (np.array(row[key], dtype=np.float64) for key in ("K", "cam_from_world"))
            camera = Camera(k, pose, int(row["width"]), int(row["height"]))
        return check_camera(camera, f"{self.rows[scene]['id']}, view {view}")

    def view(self, scene: int, view: int) -> RawView:
        """Read one view at its offsets in the shard."""
        camera, row = self.camera(scene, view), self._rows_of(scene)[view]
        image = self._picture(scene, f"{view:04}.jpg", "RGB")
        depth = no_depth(*image.shape[:2])
        with naming(self.root / self.rows[scene]["shard"]):
            if row["far"]:
                depth = _decode(self._picture(scene, f"{view:04}.depth.png", None), row["near"], row["far"])
        if depth.shape != image.shape[:2] or depth.shape != (camera.height, camera.width):
            raise InputError(
                f"picture, depth and camera of view {view} of {self.rows[scene]['id']} have different sizes"
            )
        return RawView(image, depth, camera.intrinsics, camera.cam_from_world)

    def covisibility(self, scene: int) -> np.ndarray | None:
        """Scores [V, V] of the original set."""
        if "covisibility.npy" not in self.rows[scene]["members"]:
            return None
        with naming(self.root / self.rows[scene]["shard"]):
            score = read_array(io.BytesIO(self._member(scene, "covisibility.npy")))
            if score.shape != (self.rows[scene]["views"],) * 2:
                raise ValueError(f"scores of shape {score.shape} for {self.rows[scene]['views']} views")
        return score

    def candidates(self, views: int, height: int, width: int) -> np.ndarray | None:
        """Indices of scenes with enough views, with the batch's orientation if there are any."""
        enough = np.array([row["views"] >= views for row in self.rows])
        upright = np.array([row["height"] > row["width"] for row in self.rows])
        like = enough & (upright == (height > width))
        suitable = np.flatnonzero(like if like.any() else enough)
        return suitable if len(suitable) else None

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        """Whether there is an index of shards."""
        try:
            with open(root / INDEX, encoding="utf-8") as file:
                return FORMAT in file.read(200)
        except (OSError, ValueError):
            return False

    @classmethod
    def problems(cls, root: Path) -> list[str]:
        """Sentences for shards that are missing or whose size differs from the index."""
        try:
            with naming(root / INDEX):
                shards = {name: int(size) for name, size in _index(root)["shards"].items() if inside(root, name)}
        except InputError as error:
            return [str(error)]
        problems = [f"{root / name} is missing" for name in shards if not (root / name).is_file()]
        sizes = {name: (root / name).stat().st_size for name in shards if (root / name).is_file()}
        return problems + [
            f"{root / name} has {size:,} of {shards[name]:,} bytes: the download is incomplete"
            for name, size in sizes.items()
            if size != shards[name]
        ]

    def _rows_of(self, scene: int) -> list[CameraRow]:
        rows = self._cameras.get(scene)
        if rows is None:
            with naming(self.root / self.rows[scene]["shard"]):
                rows = self._cameras[scene] = parse_json(self._member(scene, "cameras.json"))["views"]
            while len(self._cameras) > _CACHED:
                self._cameras.popitem(last=False)
        return rows

    def _member(self, scene: int, name: str) -> bytes:
        row = self.rows[scene]
        path = inside(self.root, row["shard"])
        with naming(path), open(path, "rb") as file:
            offset, size = row["members"][name]
            if not 0 <= offset <= offset + size <= path.stat().st_size:
                raise InputError(f"{path} ends before {name} of {row['id']}: the download is incomplete")
            file.seek(offset)
            data = file.read(size)
        return data

    def _picture(self, scene: int, name: str, mode: str | None) -> np.ndarray:
        data = io.BytesIO(self._member(scene, name))
        with naming(self.root / self.rows[scene]["shard"]), Image.open(data, formats=FORMATS) as picture:
            return np.asarray(picture if mode is None else picture.convert(mode))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cameras": OrderedDict()}


def pack(
    scenes: SceneSet, folder: Path, *, max_side: int | None = None, shard_mb: int = 500, scene_views: int = 64
) -> Index:
    """Write a set as shards of about `shard_mb` MB and an index, which is returned.

    max_side: longer sides of pictures are scaled down to it; scene_views: longer scenes are split into runs of so many
    views, see `_runs`. Views that are left out are listed under "skipped", with the reason. MissingExtraError without
    webdataset; UsageError for sizes below 1 or runs of one view; InputError if no view can be read.
    """
    try:
        from webdataset.writer import TarWriter
    except ImportError as error:
        raise MissingExtraError.of("packing shards", "train") from error
    if min(1 if max_side is None else max_side, shard_mb) < 1:
        raise UsageError(f"got max_side {max_side}, shard_mb {shard_mb}; expected at least 1 for both")
    if scene_views < 2:
        raise UsageError(
            f"got scene_views {scene_views}; expected at least 2: long scenes are split into parts of so many views, "
            "and a sample takes at least two views of one part"
        )
    if not scenes.has_poses:
        raise UsageError(f"{scenes.title} has no poses: it is for scoring depth, and cannot be packed for training")
    index = Index(
        format=FORMAT,
        set=scenes.label,
        licence=scenes.licence,
        source=scenes.source,
        is_metric=scenes.is_metric,
        is_ordered=scenes.is_ordered,
        has_depth=scenes.has_depth,
        shards={},
        skipped=[],
        scenes=[],
    )
    rows: dict[str, SceneRow] = {}
    with ExitStack() as stack:
        counts: dict[str, int] = {}  # shards of each bucket so far
        writing: dict[str, tuple[Path, TarWriter]] = {}
        for number in range(len(scenes)):
            for sample, row in _samples(scenes, number, scene_views, max_side, index["skipped"]):
                bucket = f"{'portrait' if row['height'] > row['width'] else 'landscape'}-{_round_up(row['views']):04}"
                if bucket not in writing:
                    path = folder / f"{bucket}-{counts.setdefault(bucket, 0):05}.tar"
                    counts[bucket] += 1
                    file = stack.enter_context(open(path, "wb"))
                    writing[bucket] = path, stack.enter_context(TarWriter(file, encoder=False, mtime=0))
                path, writer = writing[bucket]
                writer.write(sample)
                row["shard"] = path.name
                rows[str(sample["__key__"])] = row
                if path.stat().st_size > shard_mb * 1e6:
                    writing.pop(bucket)[1].close()
    if not rows:
        raise InputError(f"no view of {scenes.title} could be read: {'; '.join(index['skipped'][:3])}")
    for path in sorted(folder.glob("*.tar")):
        index["shards"][path.name] = path.stat().st_size
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, name = member.name.partition(".")
                rows[key]["members"][name] = [member.offset_data, member.size]
    index["scenes"] = list(rows.values())
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return index


def _samples(
    scenes: SceneSet, number: int, scene_views: int, max_side: int | None, skipped: list[str]
) -> Iterator[tuple[dict[str, str | bytes], SceneRow]]:
    """(sample in a shard, row in the index) of each run of a scene."""
    try:
        info, score = scenes.scene(number), scenes.covisibility(number)
    except InputError as error:
        skipped.append(f"scene {number} ({error})")
        return
    runs = _runs(info.views, scene_views)
    for run, members in enumerate(runs):
        views, numbers = [], []
        for v in members:
            try:
                views.append(_shrink(_with_known_depth(scenes.view(number, v)), max_side))
                numbers.append(v)
            except InputError as error:
                skipped.append(f"{info.id}, view {v} ({error})")
        if len(views) < min(2, info.views):
            alone = f"none of views {members.start} to {members.stop - 1} beside it can be read; a sample takes two"
            skipped += [f"{info.id}, view {v} ({alone})" for v in numbers]
            continue
        sample: dict[str, str | bytes] = {"__key__": f"{number:06}-{run:04}"}
        cameras = []
        for i, view in enumerate(views):
            sample[f"{i:04}.jpg"] = _jpeg(view.image)
            depth, near, far = _encode(view.depth)
            if far:
                sample[f"{i:04}.depth.png"] = depth
            k, pose = view.intrinsics.tolist(), view.cam_from_world.tolist()
            height, width = view.depth.shape
            cameras.append(CameraRow(K=k, cam_from_world=pose, width=width, height=height, near=near, far=far))
        sample["cameras.json"] = json.dumps({"id": info.id, "views": cameras}).encode()
        if score is not None:
            buffer = io.BytesIO()
            np.save(buffer, score[np.ix_(numbers, numbers)].astype(np.float32))
            sample["covisibility.npy"] = buffer.getvalue()
        name = info.id if len(runs) == 1 else f"{info.id}/{run}"
        height, width = views[0].depth.shape
        yield sample, SceneRow(id=name, views=len(views), width=width, height=height, shard="", members={})


def _runs(views: int, length: int) -> list[range]:
    """Runs of `length` of the views of a scene; the last may be shorter, but has not a single one: that is added to the
    run before it."""
    starts = list(range(0, views, length))
    if len(starts) > 1 and views - starts[-1] == 1:
        starts.pop()
    return [range(start, end) for start, end in pairwise([*starts, views])]


def _with_known_depth(view: RawView) -> RawView:
    """The view with 0 for unknown depth, which is how scaling knows a sparse map."""
    return replace(view, depth=zero_unknown(view.depth)[0])


def _shrink(view: RawView, max_side: int | None) -> RawView:
    height, width = view.depth.shape
    if max_side is None or max(height, width) <= max_side:
        return view
    scale = max_side / max(height, width)
    return replace(cut(view, max(1, round(height * scale)), max(1, round(width * scale))), normals=None)


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()


def _encode(depth: np.ndarray) -> tuple[bytes, float, float]:
    """(PNG, near, far) of depth [H, W]; far is 0 if no depth is known."""
    known = depth > 0
    if not known.any():
        return b"", 0.0, 0.0
    near, far = float(depth[known].min()), float(depth[known].max())
    span = max(np.log(far / near), 1e-9)
    level = np.zeros(depth.shape, np.uint16)
    level[known] = np.rint(1 + _LEVELS * np.clip(np.log(depth[known].astype(np.float64) / near) / span, 0, 1))
    buffer = io.BytesIO()
    Image.fromarray(level).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue(), near, far


def _decode(level: np.ndarray, near: float, far: float) -> np.ndarray:
    depth = near * (far / near) ** ((level.astype(np.float32) - 1) / np.float32(_LEVELS))
    return np.where(level > 0, depth, 0).astype(np.float32)


def _is_row(row: SceneRow) -> bool:
    """Whether a scene in the index has views; TypeError, ValueError or KeyError for invalid entries."""
    plain = (int(row["views"]), int(row["width"]), int(row["height"]), str(row["id"]), row["members"].keys())
    return plain[0] > 0


def _round_up(views: int) -> int:
    return 1 << max(0, views - 1).bit_length()


def _index(root: Path) -> Index:
    with naming(root / INDEX):
        index: Index = parse_json(read_text(root / INDEX))
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise InputError(f"{root / INDEX} is not an index of shards ({FORMAT}); expected {Shards.layout}")
    return index
