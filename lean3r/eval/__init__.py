"""Scores: pose, trajectory, depth and point errors, each in the convention of published tables."""

from lean3r.registry import Registry

POSE_CONVENTIONS = Registry(
    "pose convention",
    {
        "vggt": "lean3r.eval.pose_errors:pairs_vggt",
        "pi3": "lean3r.eval.pose_errors:pairs_pi3",
        "da3": "lean3r.eval.pose_errors:pairs_da3",
    },
)

DEPTH_ALIGNMENTS = Registry(
    "depth alignment",
    {
        "metric": "lean3r.eval.depth_errors:align_none",
        "median": "lean3r.eval.depth_errors:align_median",
        "scale": "lean3r.eval.depth_errors:align_scale_l1",
        "scale_lstsq": "lean3r.eval.depth_errors:align_scale_lstsq",
        "scale_shift_lad2": "lean3r.eval.depth_errors:align_lad2",
        "scale_shift_lad_bfgs": "lean3r.eval.depth_errors:align_lad_bfgs",
        "scale_shift_lstsq": "lean3r.eval.depth_errors:align_lstsq",
    },
)
