"""The table of the page on survey outputs: how upright results stand."""

from __future__ import annotations

from docs.markdown import result, table

ABOUT = {
    "office_dining_indoor": "headset, indoors",
    "castle_p19": "surveyed",
    "fountain_p11": "surveyed",
}


def upright() -> str:
    """Errors of up from cameras alone and with surfaces, of photo scenes and synthetic ones."""
    found = result("survey")
    rows = [
        [f"`{name}` ({ABOUT[name]})", str(row["views"]), f"{row['cameras_deg']:.1f}", f"{row['error_deg']:.1f}"]
        for name, row in found["photos"].items()
    ]
    made = found["synthetic"]
    for name, said in (("median", "median"), ("worst_tenth", "nine of ten are better")):
        label = f"{made['scenes']} synthetic scenes, {said}"
        cameras = "cameras_median_deg" if name == "median" else "cameras_worst_tenth_deg"
        rows.append([label, str(made["views"]), f"{made[cameras]:.1f}", f"{made[f'{name}_deg']:.1f}"])
    return table(["scene", "views", "from cameras", "with surfaces"], rows)


OF_SURVEY = {"upright": upright}
