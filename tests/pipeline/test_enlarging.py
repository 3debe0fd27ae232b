"""Maps larger than the network's: the same cameras and surfaces, nothing between these, nothing where nothing was."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lean3r
from lean3r.cli.main import main
from lean3r.data.world.synthetic import HELD_OUT_SEED, SyntheticWorld
from lean3r.errors import InputError, OutOfMemoryError, UsageError
from lean3r.geometry.lens import Optics, network_intrinsics
from lean3r.inputs.given import GivenCamera, GivenCameras
from lean3r.inputs.pictures import Pictures
from lean3r.models.base import Backbone
from lean3r.pipeline import enlarging
from lean3r.pipeline.budget import Budget
from lean3r.pipeline.enlarging import bytes_of_maps, carry, enlarge
from lean3r.pipeline.memory import used_bytes
from lean3r.pipeline.network_scene import pictures_of
from lean3r.pipeline.observer import Observer
from lean3r.pipeline.trust import no_points
from lean3r.stereo.dense import densify
from lean3r.stereo.options import Dense, StereoOptions
from lean3r.types import Lens, Reconstruction, Source

SIZES = {"wide.png": (240, 180), "tall.png": (140, 210), "small.png": (120, 90)}
LEAST = 112  # side of the network's pictures


def textured(width: int, height: int, seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed, (name, size) in enumerate(SIZES.items()):
        textured(*size, seed).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def model(weights: Path) -> Backbone:
    return lean3r.load("nano", weights, device="cpu")


@pytest.fixture
def scene(photos: Path) -> Reconstruction:
    """Pictures of three sizes as the network reads them, with some cameras and random depth."""
    views = Pictures(photos).views(resolution=LEAST, patch=16)
    images, mask = pictures_of(views)
    lenses = tuple(
        Lens("OPENCV", (1.1 * s.width, 1.2 * s.width, 0.51 * s.width, 0.48 * s.height, -0.1, 0.03, 0.001, -0.002))
        for s in views.sources
    )
    rng = np.random.default_rng(0)
    return Reconstruction(
        sources=views.sources,
        images=images,
        mask=mask,
        depth=np.where(mask, rng.uniform(1, 1.1, mask.shape), 0).astype(np.float32),
        conf=np.where(mask, rng.uniform(1, 9, mask.shape), 0).astype(np.float32),
        cam_from_world=np.tile(np.eye(4), (len(mask), 1, 1)),
        intrinsics=np.stack([network_intrinsics(*pair) for pair in zip(lenses, views.sources, strict=True)]),
        points=no_points(),
        lenses=lenses,
    )


def resized(depth: np.ndarray, conf: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.arange(n) + 0.5 for n in (width, height))
    maps = np.zeros((2, height, width), np.float32)
    carry(depth, conf, x * depth.shape[1] / width, y * depth.shape[0] / height, maps)
    return maps[0], maps[1]


@pytest.mark.parametrize("size", [(24, 32), (601, 333), (7, 90)])
def test_a_plane_stays_a_plane(size: tuple[int, int]) -> None:
    """Inverse depth is affine in the pixel; only the outer half of the border has nothing to interpolate with."""
    y, x = np.mgrid[:24, :32] + 0.5
    depth, _ = resized((1 / (0.4 + 0.005 * x - 0.004 * y)).astype(np.float32), np.ones((24, 32)), *size)
    rows, cols = ((np.arange(n) + 0.5) * m / n for n, m in zip(size, (24, 32), strict=True))
    exact = 1 / (0.4 + 0.005 * cols.clip(0.5, 31.5) - 0.004 * rows.clip(0.5, 23.5)[:, None])
    assert np.allclose(depth, exact, rtol=1e-6)


def test_an_edge_gets_no_value_between_both_sides_and_what_is_unknown_stays_unknown() -> None:
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, (20, 30)).repeat(2, 0).repeat(3, 1)  # unknown, near, far
    near, far = rng.uniform(1, 1.05, kind.shape), rng.uniform(1.3, 1.4, kind.shape)
    depth = np.choose(kind, [np.zeros(kind.shape), near, far]).astype(np.float32)
    conf = np.choose(kind, [np.full(kind.shape, 7.0), rng.uniform(1, 2, kind.shape), np.zeros(kind.shape)])
    large, sure = resized(depth, conf, 5 * kind.shape[0], 5 * kind.shape[1])
    kinds = kind.repeat(5, 0).repeat(5, 1)
    assert (large[kinds == 0] == 0).all() and (sure[kinds != 1] == 0).all(), "no depth or no trust, no confidence"
    assert (large[kinds == 1] >= 1).all() and (large[kinds == 1] < 1.06).all() and (sure[kinds == 1] >= 1).all()
    assert (large[kinds == 2] >= 1.3).all() and (large[kinds == 2] < 1.41).all()
    outside = np.zeros((2, 1, 2), np.float32)
    carry(depth, conf, np.array([-0.01, kind.shape[1] + 0.01]), np.array([9.0]), outside)
    assert not outside.any()


@pytest.mark.parametrize("side", [None, 130, 10**400])
def test_cameras_and_the_places_of_pixels_do_not_change(photos: Path, scene: Reconstruction, side: int | None) -> None:
    large = enlarge(scene, Pictures(photos), side)
    assert large.names == scene.names and not len(large.points.xyz)
    assert np.allclose(large.original_intrinsics, scene.original_intrinsics, rtol=0, atol=1e-9)
    for view, source in enumerate(large.sources):
        width, height = SIZES[source.name]
        rows, cols = np.flatnonzero(large.mask[view].any(1)), np.flatnonzero(large.mask[view].any(0))
        picture = large.images[view, rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        scale, offset = np.reshape(source.original_from_network, (2, 2))
        own, seen = (
            float(width * height / np.prod(s)) ** 0.5 for s in (1, scene.sources[view].original_from_network[:2])
        )
        if side is not None:
            size = min(side, max(own, seen))
            assert abs((len(rows) * len(cols)) ** 0.5 - size) < 1, "never larger than the original and the network's"
        if side is None or side > own > seen:
            assert np.array_equal(picture, np.asarray(Image.open(photos / source.name)))
            assert np.array_equal(scale * [cols[0], rows[0]] + offset, [0, 0])
        assert (large.images[view][~large.mask[view]] == 128).all() and not large.depth[view][~large.mask[view]].any()
        # A point of the scene is at the same place of the original, through the lens too.
        points = np.random.default_rng(view).uniform((-0.2, -0.2, 1), (0.2, 0.2, 2), (50, 3))
        for lenses in ((), scene.lenses):
            before, after = (
                Optics.of(replace(each, lenses=lenses)).project(view, points)
                * np.reshape(each.sources[view].original_from_network, (2, 2))[0]
                + np.reshape(each.sources[view].original_from_network, (2, 2))[1]
                for each in (scene, large)
            )
            assert np.allclose(before, after, atol=1e-6)
        # All but a rim that the network's picture was cropped by has depth, which is no less smooth.
        assert (large.depth[view] > 0).sum() > 0.85 * len(rows) * len(cols) and large.depth[view].max() <= 1.1


def test_pictures_that_changed_are_refused(photos: Path, scene: Reconstruction, tmp_path: Path) -> None:
    for size in (None, (77, 55)):
        for name in SIZES:
            Image.open(photos / name).save(tmp_path / name)
        pictures = Pictures(tmp_path)
        (tmp_path / "tall.png").unlink()
        if size is not None:
            textured(*size, 0).save(tmp_path / "tall.png")
        with pytest.raises(InputError, match=r"tall\.png cannot be read again as it was"):
            enlarge(scene, pictures, None)


@pytest.mark.parametrize("dense", ["network", "stereo"])
def test_what_masks_exclude_stays_without_depth(model: Backbone, photos: Path, tmp_path: Path, dense: Dense) -> None:
    """At the size of the originals masks are exact, and nothing that the network's size excludes comes back."""
    used = {}
    for name, (width, height) in SIZES.items():
        y, x = np.mgrid[:height, :width]
        used[name] = (x - 0.4 * width) ** 2 + (y - 0.6 * height) ** 2 > (0.2 * height) ** 2
        Image.fromarray(255 * used[name].astype(np.uint8)).save(tmp_path / f"{name}.png")
    options = {"masks": tmp_path, "resolution": LEAST, "refine": "off"}
    small = lean3r.reconstruct(model, photos, **options)
    large = lean3r.reconstruct(model, photos, dense=StereoOptions(dense=dense, depth_size="original"), **options)
    assert large.info["config"]["depth_size"] == "original" and len(large.points.xyz) > 0
    for view, source in enumerate(large.sources):
        width, height = SIZES[source.name]
        left, top = (-np.array(source.original_from_network[2:])).astype(int)
        depth, conf = (each[view, top : top + height, left : left + width] for each in (large.depth, large.conf))
        assert not depth[~used[source.name]].any() and not conf[~used[source.name]].any()
        scale, offset = np.reshape(small.sources[view].original_from_network, (2, 2))
        y, x = np.nonzero(depth)
        cols, rows = np.floor((np.stack([x, y], 1) + 0.5 - offset) / scale).astype(int).T
        assert len(y) and (small.depth[view, rows, cols] > 0).all()
    # What is said of the scene does not depend on its size.
    told = [{w["code"] for w in each.info.get("warnings", [])} - {"stereo-kept"} for each in (small, large)]
    assert told[0] == told[1]


def test_stereo_measures_at_the_larger_size(tmp_path: Path) -> None:
    world = SyntheticWorld(seed=HELD_OUT_SEED, distortion=0.0)
    batch = world.batch(0, 1, views=3, height=128, width=160)
    truth, images = batch.depth[0].numpy(), (batch.images[0].permute(0, 2, 3, 1) * 255).round().byte().numpy()
    for view, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{view}.png")
    intrinsics = batch.intrinsics[0].double().numpy().copy()
    intrinsics[:, :2] /= 2
    bent = truth * np.exp(0.15 * np.sin(np.linspace(0, 5, 160)))
    small = Reconstruction(
        sources=tuple(Source(f"{view}.png", 160, 128, (2.0, 2.0, 0.0, 0.0)) for view in range(3)),
        images=images[:, ::2, ::2],
        mask=np.ones((3, 64, 80), bool),
        depth=bent[:, 1::2, 1::2].astype(np.float32),
        conf=np.ones((3, 64, 80), np.float32),
        cam_from_world=batch.cam_from_world[0].double().numpy(),
        intrinsics=intrinsics,
        points=no_points(),
        registration=("refined",) * 3,
    )
    large = enlarge(small, Pictures(tmp_path), None)
    assert np.array_equal(large.images, images)
    found = densify(large)
    assert found.info["stereo"]["status"] == "measured" and found.depth.shape == truth.shape
    known = truth > 0
    before, after = (np.abs(depth[known] / truth[known] - 1).mean() for depth in (large.depth, found.depth))
    assert after < 0.4 * before


def test_small_pictures_among_larger_ones_are_as_large_as_the_networks(tmp_path: Path) -> None:
    """So they are measured as well as if all were small; at the size of the originals maps fit these pixel by pixel."""
    world = SyntheticWorld(seed=HELD_OUT_SEED, distortion=0.0)
    batch = world.batch(0, 1, views=3, height=360, width=480)
    known = []
    for view, image in enumerate(batch.images[0].permute(0, 2, 3, 1)):
        times = 5 if view == 1 else 1
        picture = Image.fromarray((image * 255).round().byte().numpy())
        picture.reduce(times).save(tmp_path / f"{view}.png")
        intrinsics, pose = (x[0, view].double().numpy().copy() for x in (batch.intrinsics, batch.cam_from_world))
        intrinsics[:2] /= times
        known.append(GivenCamera(f"{view}.png", 480 // times, 360 // times, intrinsics, pose))
    for size, inner in ((None, (240, 320)), (400, (240, 320)), ("original", (72, 96))):
        options = {"cameras": GivenCameras(tuple(known), "the world"), "dense": StereoOptions(depth_size=size)}
        scene = lean3r.reconstruct(lean3r.load("none"), tmp_path, **options)
        rows, cols = (np.flatnonzero(scene.mask[1].any(axis)) for axis in (1, 0))
        assert (len(rows), len(cols)) == inner, size
        np.testing.assert_allclose(scene.original_intrinsics, [camera.intrinsics for camera in known], atol=1e-6)
        scale, offset = np.reshape(scene.sources[1].original_from_network, (2, 2))
        np.testing.assert_allclose([cols[0], rows[0]] * scale + offset, 0, atol=0.2)
        np.testing.assert_allclose([cols[-1] + 1, rows[-1] + 1] * scale + offset, [96, 72], atol=0.2)
        if size == "original":
            continue
        y, x = np.nonzero(scene.depth[1])
        column, row = np.floor(((np.stack([x, y], 1) + 0.5) * scale + offset) * 5).astype(int).T
        truth = batch.depth[0, 1].numpy()[row.clip(0, 359), column.clip(0, 479)]
        assert len(y) > 0.5 * scene.mask[1].sum()
        assert np.median(np.abs(scene.depth[1, y, x] / truth - 1)[truth > 0]) < 0.005


def test_the_limit_is_on_pixels_of_the_canvas(model: Backbone) -> None:
    """Portraits and landscapes together have padding, too."""
    scene = refined(20, 6000, 4000)
    tall = refined(20, 4000, 6000)
    mixed = replace(scene, **{
        name: (*scene.sources, *tall.sources) if name == "sources" else np.concatenate([getattr(scene, name)] * 2)
        for name in ("sources", "images", "mask", "depth", "conf", "cam_from_world", "intrinsics")
    }, registration=("refined",) * 40)  # fmt: skip
    side = enlarging.with_size(StereoOptions(), mixed, model, None).depth_size
    assert isinstance(side, int) and side < 320
    larger, most = (40 * max(enlarging.map_size(tall.sources[0], size)) ** 2 for size in (side + 1, side))
    assert most <= 4e6 < larger


def test_the_record_says_what_maps_an_interrupted_run_has(
    photos: Path, scene: Reconstruction, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, observer = StereoOptions(depth_size=130), Observer()
    scene = replace(scene, info={"config": {"depth_size": 130, "seed": 0}})
    found = enlarging.enlarge_scene(scene, Pictures(photos), asked, None, observer)
    assert found.info["config"] == scene.info["config"] and found.depth.size > scene.depth.size

    def stopped(*args: object) -> Reconstruction:
        raise KeyboardInterrupt

    monkeypatch.setattr(enlarging, "enlarge", stopped)
    kept = enlarging.enlarge_scene(scene, Pictures(photos), asked, None, observer)
    assert kept.info["config"] == {"depth_size": None, "seed": 0} and kept.depth is scene.depth


def refined(views: int, width: int, height: int) -> Reconstruction:
    """A scene as it is before its depth is measured."""
    return Reconstruction(
        sources=tuple(Source(f"{view}.png", width, height) for view in range(views)),
        images=np.zeros((views, 192, 288, 3), np.uint8),
        mask=np.ones((views, 192, 288), bool),
        depth=np.ones((views, 192, 288), np.float32),
        conf=np.ones((views, 192, 288), np.float32),
        cam_from_world=np.tile(np.eye(4), (views, 1, 1)),
        intrinsics=np.tile(np.eye(3), (views, 1, 1)),
        points=no_points(),
        registration=("refined",) * views,
    )


@pytest.mark.parametrize(("views", "width", "height", "options", "size"), [
    (2, 6000, 4000, StereoOptions(), 320),
    (8, 6000, 4000, StereoOptions(dense="stereo"), 320),
    (50, 6000, 4000, StereoOptions(), 282),
    (70, 6000, 4000, StereoOptions(), None),
    (2, 300, 200, StereoOptions(), None),
    (1, 6000, 4000, StereoOptions(), None),
    (2, 6000, 4000, StereoOptions(dense="network"), None),
    (2, 6000, 4000, StereoOptions(depth_size=500), 500),
])  # fmt: skip
def test_measured_depth_is_larger_unasked(
    model: Backbone, views: int, width: int, height: int, options: StereoOptions, size: int | None
) -> None:
    """Less of many pictures, and nothing beyond the originals."""
    scene = refined(views, width, height)
    assert enlarging.with_size(options, scene, model, None).depth_size == size
    if options.depth_size is None:
        assert enlarging.with_size(options, scene, model, Budget(10**6)) == options, "the budget does not suffice"
    if options.dense == "auto" and options.depth_size is None:
        predicted = replace(scene, registration=("predicted",) * views)
        assert enlarging.with_size(options, predicted, model, None) == options, "nothing is measured"


@pytest.mark.parametrize("stop", [None, KeyboardInterrupt, InputError])
def test_with_known_cameras_depth_is_larger(
    tmp_path: Path, stop: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-C while pictures are read again, or if they have changed, depth is measured at the network's size."""
    world = SyntheticWorld(seed=HELD_OUT_SEED, distortion=0.0)
    batch = world.batch(0, 1, views=3, height=360, width=480)
    known = []
    for view, image in enumerate(batch.images[0].permute(0, 2, 3, 1)):
        Image.fromarray((image * 255).round().byte().numpy()).save(tmp_path / f"{view}.png")
        intrinsics, pose = (x[0, view].double().numpy() for x in (batch.intrinsics, batch.cam_from_world))
        known.append(GivenCamera(f"{view}.png", 480, 360, intrinsics, pose))
    if stop is not None:

        def stopped(*args: object) -> Reconstruction:
            raise stop("0.png cannot be read again")

        monkeypatch.setattr(enlarging, "enlarge", stopped)
    scene = lean3r.reconstruct(lean3r.load("none"), tmp_path, cameras=GivenCameras(tuple(known), "the world"))
    assert scene.info["stereo"]["status"] == "measured" and len(scene.points.xyz)
    assert scene.info["config"]["depth_size"] == (320 if stop is None else None)
    assert (scene.depth.shape[1:] == (277, 370)) is (stop is None)
    rows, cols = np.meshgrid(*(np.arange(n) for n in scene.depth.shape[1:]), indexing="ij")
    for view, source in enumerate(scene.sources):
        scale, offset = np.reshape(source.original_from_network, (2, 2))
        x, y = np.floor((np.stack([cols, rows], -1) + 0.5) * scale + offset).astype(int).reshape(-1, 2).T
        ours, truth = scene.depth[view].ravel(), batch.depth[0, view].numpy()[y.clip(0, 359), x.clip(0, 479)]
        has = (ours > 0) & (truth > 0)
        assert has.mean() > 0.3 and np.median(np.abs(ours[has] / truth[has] - 1)) < 0.01


@pytest.mark.parametrize(("size", "said"), [
    (LEAST - 1, f"depth_size is {LEAST - 1}; expected at least {LEAST}, the size of the network's pictures, or"),
    (-5, "depth_size is -5; expected at least"),
])  # fmt: skip
def test_less_than_the_network_has_is_refused(model: Backbone, photos: Path, size: int, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        lean3r.reconstruct(model, photos, resolution=LEAST, dense=StereoOptions(depth_size=size))


def test_no_depth_has_no_size(model: Backbone, photos: Path) -> None:
    with pytest.raises(UsageError, match="--dense off leaves out depth"):
        lean3r.reconstruct(model, photos, dense=StereoOptions(dense="off", depth_size="original"))


def test_ready_views_have_the_size_that_they_have(model: Backbone, photos: Path) -> None:
    views = Pictures(photos).views(resolution=LEAST, patch=model.patch)
    with pytest.raises(UsageError, match=r"ready Views cannot be read again .* give files, arrays or Pictures"):
        lean3r.reconstruct(model, views, dense=StereoOptions(depth_size="original"))
    assert lean3r.reconstruct(model, views, dense=StereoOptions()).depth.shape[1:] == views.images.shape[-2:]


@pytest.mark.parametrize("by", ["budget", "machine"])
def test_the_error_of_memory_names_a_size_that_fits(
    model: Backbone, photos: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tuple(Source(f"{view}", 6000, 4000) for view in range(40))
    options, least = StereoOptions(dense="stereo", depth_size="original"), 240
    limit = used_bytes(torch.device("cpu")) + 3 * 10**9
    monkeypatch.setattr(enlarging, "used_bytes", lambda device: limit - 3 * 10**9)
    monkeypatch.setattr(enlarging, "available_bytes", lambda device: 10**13 if by == "budget" else limit)
    budget = Budget(limit) if by == "budget" else None
    with pytest.raises(OutOfMemoryError, match=r"40 views at --depth-size original needs some \d.* GB") as error:
        enlarging.check_room(options, sources, least, model, budget)
    size = int(re.findall(r"--depth-size (\d+) would fit", str(error.value))[0])
    assert bytes_of_maps(options, sources, size) <= 3 * 10**9 < bytes_of_maps(options, sources, size + 10)
    enlarging.check_room(replace(options, depth_size=size), sources, least, model, budget)
    with pytest.raises(OutOfMemoryError, match="leave --depth-size out"):
        enlarging.check_room(options, sources * 1000, least, model, budget)


def test_every_format_takes_the_larger_maps(model: Backbone, photos: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["reconstruct", str(photos), "-o", str(out), "--model", "nano", "--weights", str(weights), "-q"]
    formats = "npz,depth,cameras,ply,glb,colmap,nerfstudio"
    options = ["--resolution", str(LEAST), "--refine", "off", "--depth-size", "original", "-f", formats]
    assert main([*command, *options]) == 0
    arrays = np.load(out / "predictions.npz")
    assert arrays["depth"].shape == (3, 210, 240)
    for name, size in SIZES.items():
        with Image.open(out / "depth" / Path(name).with_suffix(".png")) as depth:
            assert depth.size == size, "pixel for pixel as the original"
