"""The page in a real browser, from a server of files: the numbers of lean3r, nothing sent, plain words if it fails."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from lean3r.export.ply_reader import read_ply
from lean3r.geometry.consistency import Scene
from lean3r.geometry.evidence import weigh
from lean3r.geometry.fusion import fuse
from lean3r.geometry.lens import Optics
from lean3r.types import Source
from lean3r.view.content import Content, Points, make_camera
from lean3r.view.frame import frame_of
from lean3r.web.runtime import SCRIPT, WASM, runtime_files
from lean3r.web.site import write_site
from web.conftest import Opened, answers, served

WIDTH, HEIGHT = 288, 192  # the network's size of a photo of this shape: such a PNG reaches it unchanged


def drawn(seed: int) -> np.ndarray:
    """A picture [H, W, 3] uint8 with surfaces, edges and a little noise."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    smooth = 90 + 60 * np.sin(cols / 40 + seed) + 40 * np.cos(rows / 30)
    smooth[60:120, 100:180] += 60
    return (smooth[..., None] + rng.normal(0, 3, (HEIGHT, WIDTH, 3))).clip(0, 255).astype(np.uint8)


def png(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """A picture file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def photos(*names: str) -> list[tuple[str, bytes]]:
    """Picture files with names and contents of their own."""
    return [(name, png(drawn(number))) for number, name in enumerate(names)]


def test_its_cloud_and_cameras_are_those_of_lean3r(site: Path, opened: Callable[..., Opened], tmp_path: Path) -> None:
    """img2 before img10, points and frame as Python finds them; nothing is asked for after the photos, or elsewhere."""
    pictures = [drawn(number) for number in range(3)]
    names = ["img2.png", "img3.png", "img10.png"]
    with served(site) as address:
        page = opened(address)
        page.choose(*((names[i], png(pictures[i])) for i in (2, 0, 1)))
        here = {urlsplit(url).netloc for url in page.asked if not url.startswith("blob:")}
        assert here == {urlsplit(address).netloc} and page.problems == []
        loaded = [urlsplit(url).path.lstrip("/") for url in page.asked[1:] if not url.startswith("blob:")]
        assert loaded == [SCRIPT, WASM, "nano.onnx"]
        (tmp_path / "points.ply").write_bytes(page.saved("#save-points"))
        cameras = json.loads(page.saved("#save-cameras"))
        poses = page.page.evaluate("lean3r.found.header.cameras.map(each => each.pose)")
        unit, disagreement = page.page.evaluate("[lean3r.found.header.unit, lean3r.found.disagreement]")
        shot = np.asarray(Image.open(io.BytesIO(page.page.locator("#view").screenshot())).convert("RGB"))
        assert shot.std() > 15 and len(np.unique(shot.reshape(-1, 3), axis=0)) > 500
        fetched = "fetch('index.html').then(() => 'open', () => 'closed')"
        assert page.page.evaluate(fetched) == "closed"
    said = answers(np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / 255)
    known = np.ones(said["depth"].shape, bool)
    conf, votes = weigh(
        said["conf"], known, Scene(said["depth"], said["cam_from_world"], Optics((), said["intrinsics"]))
    )
    assert disagreement == pytest.approx(votes.disagreement, rel=0.02)
    cloud = fuse(np.stack(pictures), said["depth"], conf, None, said["cam_from_world"], said["intrinsics"])
    ply = read_ply(tmp_path / "points.ply")
    xyz = ply.columns("x", "y", "z")
    ours, theirs = ({tuple(row) for row in np.round(points.astype(float), 4).tolist()} for points in (xyz, cloud.xyz))
    assert len(ours & theirs) > 0.99 * max(len(ours), len(theirs)) > 10_000
    assert (np.sum(ply.columns("nx", "ny", "nz") ** 2, axis=1) > 0.99).mean() > 0.99
    assert [view["name"] for view in cameras["views"]] == names
    assert np.abs([view["cam_from_world"] for view in cameras["views"]] - said["cam_from_world"]).max() < 1e-6
    assert np.abs([view["K"] for view in cameras["views"]] - said["intrinsics"]).max() < 1e-4
    shown = Content(
        "", tuple(make_camera(Source(name, WIDTH, HEIGHT), pose, k, "predicted")
                  for name, pose, k in zip(names, said["cam_from_world"], said["intrinsics"], strict=True)),
        Points(cloud.xyz, cloud.rgb, cloud.conf, cloud.normals, cloud.view), album=None,  # type: ignore[arg-type]
    )  # fmt: skip
    frame = frame_of(shown)
    assert unit == pytest.approx(frame.unit, rel=0.01)
    expected = np.stack([frame.pose(camera.pose)[:3] for camera in shown.cameras])
    assert np.abs(np.array(poses).reshape(-1, 3, 4) - expected).max() < 0.02


def test_photos_are_prepared_as_lean3r_does(site: Path, opened: Callable[..., Opened], data_dir: Path) -> None:
    """Real photos, one of them turned by EXIF: the stand-in's confidence is the red channel that the network sees."""
    from lean3r.inputs.pictures import Pictures

    source = data_dir / "scenes" / "fountain_p11" / "images"
    paths = sorted(source.glob("*.jpg"))[:2]
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(paths[0]) as image:
        image.transpose(Image.Transpose.ROTATE_180).resize((1931, 1287)).save(turned, "JPEG", quality=95, exif=exif)
        large = Image.open(io.BytesIO(turned.getvalue()))
    with served(site) as address:
        page = opened(address)
        page.choose(("0.jpg", turned.getvalue()), ("1.jpg", paths[1].read_bytes()))
        assert page.problems == []
        red = page.found("prediction.conf") - 1
    expected = Pictures([large, Image.open(paths[1])]).views(resolution=240, patch=16).images[0, :, 0].numpy()
    differences = np.abs(red.reshape(expected.shape) - expected) * 255
    assert differences[1].max() <= 2, "a small one: the filter is the same"
    assert differences.mean() < 1.5


def test_what_cannot_be_used_is_said_and_names_are_text(site: Path, opened: Callable[..., Opened]) -> None:
    hostile = "<img src=x onerror=alert(1)>.png"
    heic = ("IMG.heic", b"\0\0\0\x18ftypheic" + bytes(64))
    with served(site) as address:
        page = opened(address)
        page.choose(*photos("a.png"))
        assert "at least two" in page.problem
        page.choose(*photos(*(f"{number}.png" for number in range(33))))
        assert "33 photos are too many" in page.problem
        page.choose((hostile, b"no picture"), ("empty.jpg", b""), heic)
        assert hostile in page.problem and "empty.jpg: the file is empty" in page.problem
        assert "this browser cannot read HEIC" in page.problem
        page.choose(*photos(hostile, "b.png"), ("wide.png", png(drawn(3)[:30])), ("tall.png", png(drawn(4)[:, :150])))
        assert page.page.locator("#problem").is_hidden()
        notes = page.page.locator("#own-notes").inner_text()
        assert "wide.png is left out: too elongated" in notes and "The photos have different shapes" in notes
        assert page.page.locator("#camera-lists .unseen").all_text_contents()[0].startswith(hostile)
        assert page.page.locator("#stage img, #panel img, #start img").count() == 0
        page.page.click("#again")
        assert page.page.locator("#start").is_visible() and page.problems == []


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_folder_that_is_not_whole(
    site: Path, opened: Callable[..., Opened], tmp_path: Path, is_damaged: bool
) -> None:
    for file in site.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    network = tmp_path / "nano.onnx"
    network.write_bytes(network.read_bytes()[:-1]) if is_damaged else network.unlink()
    with served(tmp_path) as address:
        page = opened(address)
        page.choose(*photos("a.png", "b.png"))
        assert "nano.onnx is missing beside this page, or is not the one that belongs to it" in page.problem


def test_where_it_cannot_run_it_says_so(site: Path, opened: Callable[..., Opened]) -> None:
    page = opened((site / "index.html").as_uri())
    assert "python -m http.server 8000" in page.problem and page.page.locator("#files").is_disabled()
    with served(site) as address:
        page = opened(address, "WebAssembly.validate = () => false")
        assert "no WebAssembly with SIMD" in page.problem


def test_it_can_be_stopped_and_begun_again(site: Path, opened: Callable[..., Opened]) -> None:
    with served(site) as address:
        page = opened(address)
        large = png(np.kron(drawn(0), np.ones((10, 10, 1), np.uint8)), compress_level=1)
        page.begin(*((f"{number}.png", large) for number in range(8)))
        page.page.wait_for_selector("#cancel:visible")
        page.page.click("#cancel")
        assert "Stopped" in page.problem and page.page.locator("#work").is_hidden()
        page.choose(*photos("a.png", "b.png"))
        assert page.page.text_content("#title") == "2 photos" and page.problems == []


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_nothing_serious_is_wrong_for_those_who_see_or_point_badly(
    site: Path, opened: Callable[..., Opened], axe: str, scheme: str
) -> None:
    def faults() -> list[tuple[str, list[str]]]:
        page.page.evaluate(axe)
        found = page.page.evaluate("axe.run(document).then(done => done.violations)")
        return [(each["id"], [node["html"][:90] for node in each["nodes"]][:3]) for each in found
                if each["impact"] in ("serious", "critical")]  # fmt: skip

    with served(site) as address:
        page = opened(address, color_scheme=scheme)
        page.page.keyboard.press("Tab")
        assert page.page.evaluate("document.activeElement.id") == "files", "the first thing that a key reaches"
        assert faults() == []
        page.choose(*photos("a.png"))
        assert faults() == []
        page.choose(*photos("a.png", "b.png"))
        assert page.page.evaluate("document.activeElement.id") == "view" and faults() == []


@pytest.mark.slow
def test_nano_in_the_browser_is_nano(dist: Path, opened: Callable[..., Opened], data_dir: Path, tmp_path: Path) -> None:
    """The network itself, on photos (whose filters differ by rounding), and on the pixels that lean3r feeds it."""
    import lean3r
    from lean3r.deploy.export import export_model
    from lean3r.inputs.pictures import Pictures

    model, site = lean3r.load("nano", device="cpu"), tmp_path / "site"
    site.mkdir()
    export_model(model, tmp_path / "nano.onnx")
    write_site((tmp_path / "nano.onnx").read_bytes(), runtime_files(dist), site)
    paths = sorted((data_dir / "scenes" / "fountain_p11" / "images").glob("*.jpg"))[:3]
    views = Pictures(list(paths)).views(resolution=model.resolution, patch=model.patch)
    said = model.decode(model.encode(views))
    assert said.depth is not None
    pixels = (views.images[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    files = [(path.name, path.read_bytes()) for path in paths]
    exact = [(path.with_suffix(".png").name, png(image)) for path, image in zip(paths, pixels, strict=True)]
    with served(site) as address:
        for given, tolerance in ((files, 1e-2), (exact, 1e-3)):
            page = opened(address)
            page.choose(*given)
            assert page.problems == []
            depth = page.found("prediction.depth").reshape(said.depth.shape)
            assert np.quantile(np.abs(depth / said.depth.numpy() - 1), 0.999) < tolerance
            poses = page.found("prediction.poses").reshape(said.cam_from_world.shape)
            assert np.abs(poses - said.cam_from_world.numpy()).max() < tolerance
            k = page.found("prediction.intrinsics").reshape(said.intrinsics.shape)
            assert np.abs(k / k[..., 2:, 2:] - said.intrinsics.numpy()).max() < 1000 * tolerance
