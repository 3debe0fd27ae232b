"""Tables of Zhang et al. 2026, "Lite3R" (arXiv 2605.11354), as printed."""

from __future__ import annotations

from dataclasses import replace

from lean3r.eval.papers.base import Column, PaperTable

SOURCE = 'Zhang et al. 2026, "Lite3R", arXiv 2605.11354'
NOTES = (
    "Printed: A100-PCIE-40GB, 32 pairs that are also training scenes, weight-only FP8 with dense INT8 attention. Here: "
    "pairs that the recipes leave out; lite3r-blendedmvs-released has the release's own. For Depth Anything 3 use the "
    "benchmarks with -da3. ms is the median of network seconds, MB the peak of the process."
)
BLENDEDMVS = (
    *(
        Column(head, "lite3r-blendedmvs", figure, 1.0, 4)
        for head, figure in (("AbsRel", "abs_rel"), ("delta1", "delta1"))
    ),
    Column("Rot deg", "lite3r-blendedmvs", "rot_err_deg", 1.0, 4),
    Column("Trans", "lite3r-blendedmvs", "trans_err", 1.0, 4),
    Column("CD", "lite3r-blendedmvs", "chamfer", 1.0, 4),
    Column("F@5cm", "lite3r-blendedmvs", "fscore_5cm", 1.0, 4),
    Column("ms", "lite3r-blendedmvs", "network_seconds", 1000.0, 2),
    Column("MB", "lite3r-blendedmvs", "peak_memory_mb", 1.0, 0),
)

TABLE1 = PaperTable(
    title="Lite3R, Table 1: BlendedMVS low-res, two views",
    source=SOURCE,
    columns=BLENDEDMVS,
    rows={
        "VGGT": (0.0184, 0.9930, 1.9308, 0.0273, 0.2411, 0.2005, 483.33, 5706),
        "Lite3R-VGGT": (0.0271, 0.9922, 2.2300, 0.0285, 0.2354, 0.2029, 274.38, 2455),
        "DA3-Large": (0.0862, 0.9329, 9.4800, 0.0838, 0.5366, 0.1149, 187.29, 2713),
        "Lite3R-DA3-L": (0.0889, 0.9308, 10.7440, 0.1239, 0.5892, 0.1210, 95.27, 1368),
    },
    notes=NOTES,
)
TABLE2 = PaperTable(
    title="Lite3R, Table 2: DTU64, two views",
    source=SOURCE,
    columns=(
        Column("Rot deg", "lite3r-dtu64", "rot_err_deg", 1.0, 4),
        Column("Trans", "lite3r-dtu64", "trans_err", 1.0, 4),
        Column("ms", "lite3r-dtu64", "network_seconds", 1000.0, 2),
        Column("MB", "lite3r-dtu64", "peak_memory_mb", 1.0, 0),
    ),
    rows={
        "VGGT": (0.3811, 0.0192, 482.45, 5701),
        "Lite3R-VGGT": (0.7003, 0.0220, 275.98, 2452),
        "DA3-Large": (0.9313, 0.0119, 186.65, 2709),
        "Lite3R-DA3-L": (1.5786, 0.0211, 99.54, 1364),
    },
    notes=NOTES,
)
TABLE3 = replace(
    TABLE1,
    title="Lite3R, Table 3: components, VGGT on BlendedMVS",
    rows={
        "SLA + QAT": (0.0271, 0.9922, 2.2300, 0.0285, 0.2354, 0.2029, 274.38, 2455),
        "SLA, no QAT": (0.0243, 0.9924, 2.1866, 0.0274, 0.2391, 0.2042, 377.21, 4196),
        "QAT, no SLA": (0.0238, 0.9925, 2.1374, 0.0279, 0.2397, 0.2001, 399.76, 3068),
        "original": (0.0184, 0.9930, 1.9308, 0.0273, 0.2411, 0.2005, 483.33, 5706),
    },
    notes=f"{NOTES} Evaluate each variant by its plan: sla-fp8, sla, fp8, none.",
)
TABLE4 = replace(
    TABLE1,
    title="Lite3R, Table 4: weight of the attention distillation (gamma), VGGT on BlendedMVS",
    rows={
        "gamma 0": (0.0283, 0.9926, 2.2817, 0.0297, 0.2305, 0.2003, 276.22, 2457),
        "gamma 0.1 (main)": (0.0271, 0.9922, 2.2300, 0.0285, 0.2354, 0.2029, 274.38, 2455),
        "gamma 0.2": (0.0291, 0.9922, 2.2663, 0.0288, 0.2247, 0.1938, 274.90, 2457),
        "gamma 0.5": (0.0272, 0.9924, 2.2640, 0.0292, 0.2238, 0.1900, 272.56, 2457),
    },
    notes=f"{NOTES} Evaluate students of `lean3r distill --gamma`.",
)
