"""Tables of Ren et al. 2026, "Speed3R" (arXiv 2603.08055), as printed."""

from __future__ import annotations

from lean3r.eval.papers.base import Column, PaperTable

SOURCE = 'Ren et al. 2026, "Speed3R", arXiv 2603.08055'
NO_CODE = "The authors released no evaluation code, so lists of frames and details of the metrics may differ."

TABLE1 = PaperTable(
    title="Speed3R, Table 1: ScanNet-1500, two views",
    source=SOURCE,
    columns=tuple(Column(f"AUC@{t}", "scannet1500", f"auc{t}_exact") for t in (5, 10, 20)),
    rows={
        "VGGT": (37.45, 59.24, 75.69),
        "Block-sparse VGGT": (33.21, 55.11, 72.51),
        "FastVGGT": (33.59, 56.21, 73.47),
        "Speed3R-VGGT": (37.02, 59.11, 75.62),
        "Pi3": (38.76, 61.57, 77.61),
        "Block-sparse Pi3": (35.13, 57.74, 74.98),
        "FastVGGT-Pi3": (34.87, 58.31, 75.51),
        "Speed3R-Pi3": (36.97, 59.83, 76.38),
    },
    notes=NO_CODE,
)
TABLE2 = PaperTable(
    title="Speed3R, Table 2: AUC@30 of 10 views",
    source=SOURCE,
    columns=(Column("sparsity %"), Column("RE10K", "re10k", "auc30"), Column("CO3Dv2", "co3dv2", "auc30")),
    rows={
        "VGGT": (0, 74.17, 88.33),
        "Block-sparse VGGT, 25 %": (25, 71.79, 86.98),
        "Block-sparse VGGT, 50 %": (50, 68.25, 84.71),
        "Block-sparse VGGT, 75 %": (75, 63.82, 79.92),
        "SAIL-Recon, 10 anchors": (None, 74.31, 87.63),
        "SAIL-Recon, 5 anchors": (None, 72.66, 84.25),
        "SAIL-Recon, 2 anchors": (None, 69.11, 80.03),
        "FastVGGT, 25 %": (25, 72.97, 87.74),
        "FastVGGT, 50 %": (50, 71.55, 86.01),
        "FastVGGT, 82 %": (82, 69.99, 84.03),
        "Speed3R-VGGT": (84, 74.81, 87.71),
        "Pi3": (0, 87.37, 89.67),
        "Block-sparse Pi3, 25 %": (25, 85.18, 88.25),
        "Block-sparse Pi3, 50 %": (50, 81.29, 85.36),
        "Block-sparse Pi3, 75 %": (75, 75.39, 80.72),
        "FastVGGT-Pi3, 25 %": (25, 87.26, 88.15),
        "FastVGGT-Pi3, 50 %": (50, 86.67, 87.62),
        "FastVGGT-Pi3, 90 %": (90, 86.04, 86.39),
        "Speed3R-Pi3": (94, 87.17, 89.41),
    },
    notes=NO_CODE,
)
TANKS = (
    Column("RRA@5", "tanks", "rra5"),
    Column("RTA@5", "tanks", "rta5"),
    Column("AUC@30", "tanks", "auc30"),
    Column("s", "tanks", "network_seconds"),
)
TABLE3 = PaperTable(
    title="Speed3R, Table 3: Tanks and Temples, about 300 views",
    source=SOURCE,
    columns=TANKS,
    rows={
        "VGGT": (70.29, 79.30, 77.67, 34.51),
        "Block-sparse VGGT": (66.83, 71.29, 74.15, 10.79),
        "SAIL-Recon, 20 anchors": (68.34, 73.77, 74.98, 20.35),
        "SAIL-Recon, 100 anchors": (69.72, 75.16, 75.70, 53.02),
        "FastVGGT": (69.28, 77.98, 76.29, 15.98),
        "Speed3R-VGGT": (69.51, 77.81, 76.57, 6.55),
        "Pi3": (72.14, 81.26, 79.63, 22.32),
        "Block-sparse Pi3": (67.85, 78.91, 76.64, 8.16),
        "FastVGGT-Pi3": (69.78, 79.51, 77.76, 11.96),
        "Speed3R-Pi3": (70.72, 80.72, 79.77, 4.19),
    },
    notes=f"Printed seconds are of one H100. {NO_CODE}",
)


def _points(data: str, factor: float, digits: int) -> tuple[Column, ...]:
    found: list[Column] = []
    for head, figure, scale in (("Acc", "acc", factor), ("Comp", "comp", factor), ("NC", "nc", 1.0)):
        found.append(Column(f"{data.upper()} {head}", f"{data}-points", figure, scale, digits))
        found.append(Column("med.", f"{data}-points", f"{figure}_med", scale, digits))
    return tuple(found)


TABLE4 = PaperTable(
    title="Speed3R, Table 4: point maps, mean and median (DTU in mm, ETH3D in m)",
    source=SOURCE,
    columns=(*_points("dtu", 1000.0, 3), *_points("eth3d", 1.0, 3)),
    rows={
        "VGGT": (1.403, 0.802, 2.566, 1.307, 0.658, 0.742, 0.289, 0.192, 0.294, 0.173, 0.847, 0.953),
        "Block-sparse VGGT": (1.966, 1.052, 2.311, 1.135, 0.647, 0.715, 0.861, 0.754, 1.171, 0.812, 0.681, 0.772),
        "FastVGGT": (1.466, 0.786, 2.385, 1.188, 0.654, 0.736, 0.510, 0.379, 0.580, 0.354, 0.788, 0.913),
        "Speed3R-VGGT": (1.426, 0.827, 2.179, 1.101, 0.657, 0.740, 0.295, 0.190, 0.289, 0.168, 0.853, 0.953),
        "Pi3": (1.151, 0.622, 1.793, 0.629, 0.668, 0.754, 0.194, 0.130, 0.220, 0.135, 0.867, 0.965),
        "Block-sparse Pi3": (2.434, 1.130, 2.714, 1.004, 0.664, 0.749, 0.313, 0.235, 0.439, 0.276, 0.816, 0.951),
        "FastVGGT-Pi3": (1.255, 0.737, 2.250, 0.857, 0.650, 0.730, 0.291, 0.215, 0.291, 0.179, 0.841, 0.961),
        "Speed3R-Pi3": (1.175, 0.710, 2.037, 0.731, 0.657, 0.739, 0.198, 0.136, 0.213, 0.126, 0.878, 0.970),
    },
    notes=NO_CODE,
)
TABLE5 = PaperTable(
    title="Speed3R, Table 5: ablations of Speed3R-Pi3",
    source=SOURCE,
    columns=(
        Column("RE10K AUC@30", "re10k", "auc30"),
        Column("T&T AUC@30", "tanks", "auc30"),
        Column("s", "tanks", "network_seconds"),
    ),
    rows={
        "base, 4x4 window, top-32": (86.35, 78.69, 4.19),
        "no compressed-branch value": (86.29, 77.90, 3.99),
        "no selection branch": (83.44, 76.84, 3.56),
        "with registers": (86.39, 78.57, 4.25),
        "top-8": (85.37, 78.17, 3.72),
        "top-16": (85.98, 78.55, 3.92),
        "top-64": (86.42, 78.90, 4.64),
        "8x8 window": (86.49, 78.71, 5.27),
        "no distillation": (85.18, 77.81, 4.19),
    },
    notes=f"Evaluate each variant by its plan, such as gsa:top_k=16. Printed seconds are of one H100. {NO_CODE}",
)
FIGURE4 = PaperTable(
    title="Speed3R, Figure 4: seconds against views",
    source=SOURCE,
    columns=tuple(
        Column(f"{views} views", f"latency@{views}", "network_seconds") for views in (32, 64, 128, 256, 512, 1024)
    ),
    rows={
        "Pi3": (0.50, 1.31, 3.97, 13.41, 50.01, 202.39),
        "Block-sparse Pi3": (0.46, 0.85, 1.69, 3.77, 9.64, 29.58),
        "FastVGGT-Pi3": (0.44, 0.88, 1.96, 4.95, 14.13, 45.49),
        "Speed3R-Pi3": (0.37, 0.71, 1.44, 3.06, 6.83, 16.38),
    },
    notes="Printed: one H100; the size of the pictures is not stated. Here 336 x 504 px.",
)
