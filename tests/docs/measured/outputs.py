"""The pages on inputs and on what a run writes."""

from __future__ import annotations

import math

from docs.figures import Page
from docs.markdown import result
from lean3r.export.depth import LEVELS, MILLIMETRE
from lean3r.export.options import ExportOptions
from lean3r.export.texture import SIDE
from lean3r.export.tracks import LONGEST, PREDICTED, REFINED
from lean3r.export.unwrap import TRIANGLES
from lean3r.geometry.content import LEAST_STRUCTURE, STEP
from lean3r.geometry.earth import NADIR
from lean3r.geometry.evidence import ALONE, BADLY, BORDER, CLOSE, WELL
from lean3r.geometry.normals import WINDOW
from lean3r.geometry.terrain import PIXELS
from lean3r.geometry.up import CERTAIN_DEG
from lean3r.inputs.frames import DEFAULT_FRAMES
from lean3r.inputs.video import MOTION_STEP
from lean3r.models.fingerprint import PIECE_BYTES, PIECES, WHOLE_BYTES
from lean3r.pipeline.devices import AGREEMENT
from lean3r.pipeline.overlap import LEAST
from lean3r.pipeline.trust import MAX_DISAGREEMENT, SKY_ONLY
from lean3r.quality.agreement import CONFIRMED, MOST_VIEWS, SAME
from lean3r.refine.accept import TURNED_PX
from lean3r.refine.focal_error import FAR, GUESSED, STATED
from lean3r.refine.unconfirmed import FEW
from lean3r.stereo.alone import LITTLE
from lean3r.stream.budget import USUAL
from lean3r.stream.options import StreamOptions


def with_blank(number: int) -> str:
    """50 000."""
    return f"{number:,}".replace(",", " ")


def bad_inputs() -> list[int]:
    """Those that are reported, and all; the photo scenes, and those with a warning."""
    bad, photos = (result("trust")[name].values() for name in ("bad_inputs", "photos"))
    warned = sum(any(row["warnings"] for row in scene.values()) for scene in photos)
    return [sum(row["hit"] for row in bad), len(bad), len(photos), warned]


def in_sky() -> list[int]:
    """Measured points that the rule takes for sky, and all, of the two scenes with much sky; the other scenes."""
    photos = result("trust")["photos"]
    much = [row["on"] for row in photos.values() if row["on"]["sky"] > 10]
    others = [row["on"] for row in photos.values() if row["on"]["sky"] <= 10]
    assert len(much) == 2 and not any(row["measured_in_sky"] for row in others)
    return [row[name] for row in much for name in ("measured_in_sky", "measured")] + [len(others)]


def in_the_office() -> list[float]:
    """Errors of refined depth: of the most confident half, and of all."""
    row = result("trust")["confidence"]["sensor"]["on"]
    return [row["best_half"], row["all"]]


CONVENTIONS = Page(
    "docs/conventions.md",
    [],
    {
        "the other way; 4 x 4, last row": "the shape of a pose",
        "is at (0.5, 0.5), as in COLMAP": "a convention",
        "3 x 3, in pixels of": "the shape of a matrix",
        "3 x 3 inside; quaternions": "the shape of a matrix",
    },
)

OUTPUTS = Page(
    "docs/outputs.md",
    [
        ("whether it is `certain` ({:.0f} degrees or better)", lambda: [CERTAIN_DEG]),
        (
            "{} for metric scenes up to {:.1f} m, else the deepest value / {}",
            lambda: [MILLIMETRE, LEVELS * MILLIMETRE, LEVELS],
        ),
        ("`--colmap-points` ({}; 0: none)", lambda: [with_blank(ExportOptions().colmap_points)]),
        ("agree to within {:.0f} %, starting with those on which three agree", lambda: [100 * REFINED]),
        ("1 to {} observations, from views whose depth agrees to within {:.0f} %", lambda: [LONGEST, 100 * PREDICTED]),
        ("files up to {} MiB", lambda: [WHOLE_BYTES >> 20]),
        ("the depth of the pixels around ({} x {} squares)", lambda: [WINDOW, WINDOW]),
        ("places where they are `close` ({:.0f} %)", lambda: [100 * CLOSE]),
        ("of {} evenly spaced pieces of {} KiB", lambda: [PIECES, PIECE_BYTES >> 10]),
    ],
    {
        "`cam_from_world` (4 x 4) maps world points": "the shape of a pose",
        "is at (0.5, 0.5).": "a convention",
        "`K` (3 x 3, pixels of the original picture)": "the shape of a matrix",
        "`world_from_cam` (4 x 4), `registration`": "the shape of a pose",
        "a block of 2 x 2, 4 x 4 or 8 x 8 pixels": "the factors of the sizes",
    },
)

OTHER_SYSTEMS = Page(
    "docs/other-systems.md",
    [("fails or differs by more than {:.0f} %", lambda: [100 * AGREEMENT])],
    {"with Python 3.11": "a version"},
)

SPLATTING = Page(
    "docs/how-to/into-colmap-and-splatting.md",
    [("At most {} points from the depth maps go to COLMAP", lambda: [with_blank(ExportOptions().colmap_points)])],
)

TRUST = Page(
    "docs/how-to/trust.md",
    [
        (
            "(less than {:.0f} % of its pixels differ from a neighbour by {:.0f} grey levels)",
            lambda: [100 * LEAST_STRUCTURE, STEP],
        ),
        ("all but {:.0f} % of a picture is sky", lambda: [100 * (1 - SKY_ONLY)]),
        ("a view has fewer than {} verified matches with every other view", lambda: [LEAST]),
        ("(median error below {:.0f} pixel)", lambda: [TURNED_PX]),
        ("differ by more than {:.0f} % (median)", lambda: [100 * math.expm1(MAX_DISAGREEMENT)]),
        ("{} verified matches with one other view are enough", lambda: [LEAST]),
        (
            "{} of {} bad inputs made by `benchmarks/trust.py` are reported; of its {} photo scenes, {} has a warning",
            bad_inputs,
        ),
        (
            "{:,} of {:,} and {:,} of {:,} measured points (on thin spires) lie in the removed regions; "
            "on {} other scenes none do",
            in_sky,
        ),
        ("it may be off by more than {:.0f} %", lambda: [100 * FAR]),
        ("fewer than {:.0f} % of the pixels have depth", lambda: [100 * LITTLE]),
        ("by fewer than {} points, and none from a third", lambda: [FEW]),
        (
            "it is EXIF's, taken as right to {:.0f} %, or the network's, to {:.0f} %",
            lambda: [100 * STATED, 100 * GUESSED],
        ),
        ("Without any vote the factor is {}.", lambda: [ALONE]),
        ("at the border of a picture ({:.0f} % of its shorter side)", lambda: [100 * BORDER]),
        (
            "disagree by less than {:.0f} % of depth (median; `depth_disagreement` in the manifest), "
            "and not at all above {:.0f} %",
            lambda: [100 * WELL, 100 * BADLY],
        ),
        ("the error of the whole ({:.1f} and {:.1f} %)", in_the_office),
    ],
    {"the factor is between 0.5 (none at the same depth) and 1.5": "a formula"},
)


def flight() -> list[float]:
    """Pictures, those with GPS, residuals against GPS over its extent and against structure from motion; rasters."""
    row = result("survey")["flight"]
    raster = row["raster"]
    return [
        row["views"],
        row["with_gps"],
        row["gps_rms_m"],
        row["extent_m"],
        row["sfm_rms_m"],
        raster["cell"],
        raster["height"],
        raster["width"],
    ]


SURVEY = Page(
    "docs/how-to/survey.md",
    [
        (
            "Measured on {} nadir pictures of `brighton_beach_aerial`, of which {} have GPS (`python "
            "benchmarks/survey.py`, `benchmarks/results/survey.json`): the cameras fit these positions within {:.2f} m "
            "(root mean square, over {:.0f} m), and structure from motion of the same pictures within {:.2f} m. The "
            "rasters have cells of {:.2f} m, {} x {} of them.",
            flight,
        ),
        ("cameras rolled by {:.0f} degrees", lambda: [result("survey")["synthetic"]["roll_deg"]]),
        ("A cell is {} pixels of the depth maps wide", lambda: [PIXELS]),
        ("that looks down to within {:.0f} degrees", lambda: [math.degrees(math.acos(NADIR))]),
    ],
    {"`1305031102.175304.png`": "a name"},
)

QUALITY = Page(
    "docs/how-to/quality-report.md",
    [
        ("their depths there differ by less than {:.0f} %", lambda: [100 * math.expm1(SAME)]),
        ("a view confirms another within {:.0f} %", lambda: [100 * math.expm1(CONFIRMED)]),
        ("Of more than {} views", lambda: [MOST_VIEWS]),
    ],
)

VIDEO = Page(
    "docs/how-to/from-a-video.md",
    [
        ("moved by {:.0f} % of the picture's longer side", lambda: [100 * MOTION_STEP]),
        ("at least {} and at most {} (`--max-views`)", lambda: DEFAULT_FRAMES),
        ("compared with tracked poses, {} cores of an AMD EPYC", lambda: [result("video")["hardware"]["cores"]]),
    ],
    {"a 20-second walk": "a length"},
)


def undamaged_runs() -> int:
    """Runs of a stream that were killed and resumed, all with the same files as one that was not."""
    chains = result("stream")["killed"]["chains"]
    assert not any(row["differ"] for row in chains)
    return len(chains)


STREAM = Page(
    "docs/how-to/stream.md",
    [
        ("moved by {:.0f} % of its longer side", lambda: [100 * StreamOptions().keyframe_step]),
        ("{} keyframes (`--window`)", lambda: [USUAL]),
        (
            "through a hall, {} frames a round",
            lambda: [next(iter(result("stream")["rendered"].values()))["round_frames"]],
        ),
        (
            "the walk below, killed {} times at any moment in {} runs: the same files",
            lambda: [result("stream")["killed"]["kills"], undamaged_runs()],
        ),
        (
            "takes nano {:.0f} ms, of which {:.0f} ms ({:.0f} %) go",
            lambda: [result("stream")["share"][key] for key in ("frame_ms", "outside_ms", "outside_percent")],
        ),
    ],
    {
        "`--memory 2GB`": "an example of a size",
        "the 20-second walk": "a length",
        "(median and 95 %)": "a quantile",
        "1305031102.175304.png": "the name of a picture",
        "a frame of 320 x 240 pixels": "a size",
    },
)

MASKS = Page("docs/how-to/masks.md", [], {"a picture rotated by 180 degrees": "a half turn"})
MESH = Page(
    "docs/how-to/mesh.md",
    [
        ("is simplified to some {:,} triangles", lambda: [TRIANGLES]),
        ("up to {:,} x {:,} texels", lambda: [SIDE, SIDE]),
    ],
)


def of_page(row: int, way: str, name: str) -> float:
    """A figure of the viewer's page."""
    return result("view")["rows"][row][way][name]


VIEW = Page(
    "docs/how-to/view.md",
    [
        (
            "in software on two cores, {:.0f} million points take {:.1f} s until the first picture and {:.1f} s",
            lambda: (
                [result("view")["rows"][0]["points"] / 1e6]
                + [of_page(0, "served", name) for name in ("first_picture_s", "all_points_s")]
            ),
        ),
        ("and turn at {:.0f} pictures a second", lambda: [of_page(0, "served", "turning_frames_a_second")]),
        (
            "a page of {:,} points has {:.1f} MB",
            lambda: [result("view")["rows"][1]["points"], result("view")["rows"][1]["file_bytes"] / 1e6],
        ),
    ],
    {"`--up 0,0.2,1`": "an example of a direction"},
)


def of_web(views: str, name: str) -> float:
    """A figure of the page in the browser."""
    return result("web_page")["runs"][views][name]


WEB = Page(
    "docs/how-to/web-page.md",
    [
        (
            "differ by less than {:.3f} %, and rotations by {:.4f} degrees at most",
            lambda: [
                100 * of_web("4", "photos_apart")["depth_999"] + 0.0005,
                of_web("4", "photos_apart")["rotation_deg"],
            ],
        ),
        ("less than {:.4f} %.", lambda: [100 * of_web("4", "same_pixels_apart")["depth_999"] + 0.00005]),
        (
            "the network takes {:.1f} s for 4 photos in the page and {:.1f} s in Python",
            lambda: [of_web("4", name) for name in ("page_s", "python_s")],
        ),
        ("to the cloud the page takes {:.0f} s", lambda: [of_web("4", "page_whole_s")]),
        ("16 photos take {:.0f} s, 32 photos {:.0f} s", lambda: [of_web(views, "page_s") for views in ("16", "32")]),
        ("The folder has {:.0f} MB", lambda: [result("web_page")["megabytes"]]),
    ],
    {"more than 4 GB": "a limit of WebAssembly"},
)
SCALE = Page("docs/how-to/scale-and-gps.md", [], {"these two pictures were 1.25 m apart": "the example above it"})

OF_OUTPUTS = (
    *(CONVENTIONS, OUTPUTS, OTHER_SYSTEMS, SPLATTING, TRUST, QUALITY, SURVEY),
    *(VIDEO, STREAM, MASKS, MESH, SCALE, VIEW, WEB),
)
