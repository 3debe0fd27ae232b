"""Protocols of published tables and our own: one row a benchmark."""

from lean3r.registry import Registry

BENCHMARKS = Registry(
    "benchmark",
    {
        "re10k": "lean3r.eval.protocols.rows:RE10K",
        "co3dv2": "lean3r.eval.protocols.rows:CO3DV2",
        "scannet1500": "lean3r.eval.protocols.rows:SCANNET1500",
        "tanks": "lean3r.eval.protocols.rows:TANKS",
        "dtu64": "lean3r.eval.protocols.rows:DTU64_POSE",
        "eth3d": "lean3r.eval.protocols.rows:ETH3D_POSE",
        "sintel-trajectory": "lean3r.eval.protocols.rows:SINTEL_TRAJECTORY",
        "tum-trajectory": "lean3r.eval.protocols.rows:TUM_TRAJECTORY",
        "scannet-trajectory": "lean3r.eval.protocols.rows:SCANNET_TRAJECTORY",
        "bonn-trajectory": "lean3r.eval.protocols.rows:BONN_TRAJECTORY",
        "kitti-trajectory": "lean3r.eval.protocols.rows:KITTI_TRAJECTORY",
        "sintel-depth": "lean3r.eval.protocols.rows:SINTEL_DEPTH",
        "bonn-depth": "lean3r.eval.protocols.rows:BONN_DEPTH",
        "kitti-depth": "lean3r.eval.protocols.rows:KITTI_DEPTH",
        "dtu-points": "lean3r.eval.protocols.rows:DTU_POINTS",
        "eth3d-points": "lean3r.eval.protocols.rows:ETH3D_POINTS",
        "7scenes-points": "lean3r.eval.protocols.rows:SEVENSCENES",
        "7scenes-points-dense": "lean3r.eval.protocols.rows:SEVENSCENES_DENSE",
        "nrgbd-points": "lean3r.eval.protocols.rows:NRGBD",
        "nrgbd-points-dense": "lean3r.eval.protocols.rows:NRGBD_DENSE",
        "lite3r-blendedmvs": "lean3r.eval.protocols.rows:LITE3R_BLENDEDMVS",
        "lite3r-blendedmvs-da3": "lean3r.eval.protocols.rows:LITE3R_BLENDEDMVS_DA3",
        "lite3r-blendedmvs-released": "lean3r.eval.protocols.rows:LITE3R_BLENDEDMVS_RELEASED",
        "lite3r-blendedmvs-da3-released": "lean3r.eval.protocols.rows:LITE3R_BLENDEDMVS_DA3_RELEASED",
        "lite3r-dtu64": "lean3r.eval.protocols.rows:LITE3R_DTU64",
        "lite3r-dtu64-released": "lean3r.eval.protocols.rows:LITE3R_DTU64_RELEASED",
        "synthetic": "lean3r.eval.protocols.rows:SYNTHETIC",
        "latency": "lean3r.eval.protocols.rows:LATENCY",
        "colmap": "lean3r.eval.protocols.rows:COLMAP",
    },
)
