"""Predictions in files of any program: one reader a form."""

from typing import NamedTuple

from lean3r.registry import Registry


class Form(NamedTuple):
    """A form of files: its reader, the files (in the folder of an item, or `ITEM.suffix` beside it), what they hold."""

    at: str
    files: str
    holds: str


READERS = Registry(
    "form of predictions",
    {
        "npz": Form(
            "lean3r.eval.predicted.npz:read",
            "predictions.npz",
            "any of the arrays of [lean3r's own](../outputs.md#predictionsnpz): `names`, `cam_from_world`, "
            "`K_original`, `depth`, `mask`, `original_from_network`",
        ),
        "tum": Form(
            "lean3r.eval.predicted.text:read_tum",
            "*.txt, *.tum",
            "8 numbers a line: `time tx ty tz qx qy qz qw`, seconds, the camera in the world; NaN without a pose",
        ),
        "kitti": Form(
            "lean3r.eval.predicted.text:read_kitti",
            "*.txt, *.kitti",
            "12 numbers a line: the 3 x 4 part of `world_from_cam`, row by row; NaN without a pose; times in "
            "seconds in a `times.txt` beside it",
        ),
        "euroc": Form(
            "lean3r.eval.predicted.text:read_euroc",
            "*.csv",
            "at least 8 numbers a line: `time, x, y, z, qw, qx, qy, qz, ...`, nanoseconds, the camera in the world",
        ),
        "colmap": Form(
            "lean3r.eval.predicted.models:read_colmap",
            "sparse/0, sparse, cameras.bin, cameras.txt",
            "a COLMAP model, binary or text, with rigs or not: poses, the pinhole part of the cameras, and its points "
            "if there is no PLY; a picture that is not in it has no pose",
        ),
        "json": Form(
            "lean3r.eval.predicted.models:read_json",
            "cameras.json, transforms.json, intrinsics.json",
            "cameras of [lean3r](../outputs.md#camerasjson) or nerfstudio, or `fx`, `fy`, `cx`, `cy` for all pictures",
        ),
        "intrinsics": Form(
            "lean3r.eval.predicted.text:read_intrinsics",
            "intrinsics.txt, intrinsics.npy, K.txt, K.npy",
            "one 3 x 3 matrix for all pictures, or one a picture ([S, 3, 3], or 9 numbers a line)",
        ),
        "depth": Form(
            "lean3r.eval.predicted.maps:read",
            "depth/, depth.npy",
            "one map a picture (.npy, .npz, .exr, .pfm, .tiff, 16-bit .png) with its name, or one array [S, h, w]",
        ),
        "ply": Form(
            "lean3r.eval.predicted.cloud:read",
            "*.ply",
            "points of the world: `x`, `y`, `z` of the vertices, ASCII or binary, floats or doubles, in any order",
        ),
    },
)
"""Form -> read(path) -> Predicted; `lean3r.eval.predicted.reading.read` chooses by what is there."""
