"""Every recorded result in a few lines: what it is, how it was made, its main figures (docs/results.md)."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from docs.markdown import RESULTS, ROOT, result
from docs.of_parallel import recorded as of_processes
from docs.of_streams import of_clips, of_rules
from lean3r.bench.exponents import label

Figures = Callable[[Mapping[str, Any]], Iterable[str]]


def recorded() -> str:
    """A paragraph and a list for each file of benchmarks/results."""
    return "\n".join(map(section, sorted(path.stem for path in RESULTS.glob("*.json"))))


def section(name: str) -> str:
    """Question, command, hardware, date and main figures of one result."""
    found = result(name)
    script, figures = ("costs.py", bench) if "roofline" in found else ROWS.get(name, (None, plain))
    question = "" if script is None else f"{first_line(ROOT / 'benchmarks' / script)}\n\n"
    unknown = f"python benchmarks/{script} (its options are not recorded)" if script else ""
    command = f"python benchmarks/{script} {name}" if figures is bench else found.get("command") or unknown
    facts = [f"`{command.partition(' (its')[0]}`" + (" (its options are not recorded)" if "(its" in command else "")]
    facts += [machine(found), found.get("recorded", "")]
    lines = "".join(f"- {line}\n" for line in figures(found))
    return f"## {name}\n\n{question}{' · '.join(fact for fact in facts if fact.strip('`'))}\n\n{lines}"


def first_line(script: Path) -> str:
    """The question that a script answers: the first sentence of its docstring."""
    return (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]


def machine(found: Mapping[str, Any]) -> str:
    """Processor, cores, threads."""
    known = found.get("hardware") or next((v["hardware"] for v in found.values() if has_hardware(v)), None)
    if known is None:
        return ""
    threads = known.get("threads")
    said = f", {threads} thread{'s' * (threads != 1)}" if threads else ""
    return f"{known.get('gpu') or known['cpu']}, {known['cores']} cores{said}"


def has_hardware(value: object) -> bool:
    """Whether a part of a result has a machine of its own."""
    return isinstance(value, dict) and "hardware" in value


def plain(found: Mapping[str, Any]) -> Iterable[str]:
    """The numbers at the top, for results that have no row here."""
    numbers = [f"{key} {value:g}" for key, value in found.items() if isinstance(value, int | float)]
    return numbers or [f"entries: {', '.join(found)}"]


def bench(found: Mapping[str, Any]) -> Iterable[str]:
    """Of a file of `lean3r bench`: seconds by the number of views, and their exponent."""
    lines: dict[str, list[str]] = {}
    for row in found["rows"]:
        shown = row["error"] or f"{row['seconds']['median']:.3g}"
        lines.setdefault(label(row), []).append(f"{shown} ({row['views']})")
    for name, line in lines.items():
        slope = f"; exponent {found['exponents'][name]['seconds']:.2f}" if name in found["exponents"] else ""
        yield f"{name}: seconds (views): {', '.join(line)}{slope}"


def auc(row: Mapping[str, float]) -> str:
    """AUC@5 / 15 / 30."""
    return " / ".join(f"{row[key]:.1f}" for key in ("auc5", "auc15", "auc30"))


def scores(row: Mapping[str, float]) -> str:
    """AUC and depth."""
    return f"AUC@5 / 15 / 30 {auc(row)}, AbsRel {row['abs_rel']:.1f} %"


def margin(row: Mapping[str, float]) -> str:
    """A difference with its interval."""
    return f"{row['mean']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})"


def adapters(r: Mapping[str, Any]) -> Iterable[str]:
    yield f"no adapters: AUC@30 {r['none']['auc30']:.1f}, AbsRel {r['none']['abs_rel']:.1f} %"
    for name, row in r["choices"].items():
        yield f"{name}: AUC@30 {row['auc30']:.1f}, AbsRel {row['abs_rel']:.1f} %, loss {row['loss']:.2f}"


def calibrated(r: Mapping[str, Any]) -> Iterable[str]:
    yield f"dense: {scores(r['dense'])}"
    for budget, row in r["budgets"].items():
        yield f"budget {budget}, by layer: AUC@30 - dense {margin(row['minus_dense']['auc30'])}"
        yield f"budget {budget}, by head: AUC@30 - dense {margin(row['by_head']['minus_dense']['auc30'])}"


def fp8(r: Mapping[str, Any]) -> Iterable[str]:
    yield "decibels: " + ", ".join(f"{name} {value:.1f}" for name, value in r["noise"].items())
    for views, row in r["accuracy"]["views"].items():
        yield f"nano, {views} views: AUC@30 {row['float32']['auc30']:.1f} in float32, {row['fp8']['auc30']:.1f} in fp8"
    for name, row in r["bytes"].items():
        yield f"{name}: {row['float32_gb']:.3f} GB in float32, {row['fp8_gb']:.3f} GB in fp8"


def kills(r: Mapping[str, Any]) -> Iterable[str]:
    for name, row in r["rows"].items():
        ended = row["SIGKILL"]["ended"] + row["SIGTERM"]["ended"]
        yield f"{name}: {ended} kills, {len(row['problems'])} problems"


def known(r: Mapping[str, Any]) -> Iterable[str]:
    for name, row in r["scenes"].items():
        yield f"{name}: AUC@5 {row['none']['auc5']:.1f} without, {row['both_fixed']['auc5']:.1f} with known cameras"
    yield f"worse than without: {', '.join(r['worse_than_without']) or 'none'}"


def half_precision(r: Mapping[str, Any]) -> Iterable[str]:
    worst = min((value, case, name) for case, row in r["snr_db"].items() for name, value in row.items())
    yield f"{len(r['snr_db'])} cases in {r['dtype']}: worst {worst[0]:.1f} dB ({worst[1]}, {worst[2]})"


def looped(r: Mapping[str, Any]) -> Iterable[str]:
    yield f"nano: AUC@30 {r['nano']['8']['auc30']:.1f} at 8 views, {r['seconds']['nano']:.2f} s"
    for loops, row in r["nano-looped"].items():
        yield f"{loops} loops: AUC@30 {row['8']['auc30']:.1f} at 8 views, {r['seconds'][loops]:.2f} s"


def accuracy(r: Mapping[str, Any]) -> Iterable[str]:
    for views, row in r["synthetic"].items():
        yield f"{views} views: {scores(row['nano'])}; constant {scores(row['constant'])}"
    for name, row in r["photos"].items():
        yield f"{name}: AUC@5 / 15 / 30 {auc(row['nano'])}; constant {auc(row['constant'])}"


def added(r: Mapping[str, Any]) -> Iterable[str]:
    for name, row in r.get("accuracy", {}).items():
        both = (f"{row[way]['median_deg']:.2f}" for way in ("added", "at_once") if "median_deg" in row[way])
        doubts = row["added"]["uncertain"]
        yield f"{name}: {row['new']} added, {doubts} uncertain; degrees off, added / at once: {' / '.join(both)}"
    for row in r.get("growth", []):
        ways = (f"{row[way]['new']} added {row[way]['processor_seconds']:.1f} CPU s" for way in ("first", "again"))
        yield f"{row['stored']} stored views: {', then '.join(ways)}"


def densities(r: Mapping[str, Any]) -> Iterable[str]:
    for views, rows in r["views"].items():
        yield f"{views} views, dense: {scores(rows['dense']['mean'])}"
        least = min((n for n in rows if n != "dense"), key=lambda n: rows[n]["against_dense"]["auc30"]["mean"])
        yield f"{views} views, worst student ({least}): AUC@30 - dense {margin(rows[least]['against_dense']['auc30'])}"


def ablations(r: Mapping[str, Any]) -> Iterable[str]:
    for name, row in r["against_dense"].items():
        yield f"{name}: AUC@30 - dense {margin(row['auc30'])}"


def many_views(r: Mapping[str, Any]) -> Iterable[str]:
    for name, row in r["ways"].items():
        mean = statistics.fmean(scene["auc30"] for scene in row["synthetic"])
        yield f"{name}: AUC@30 {mean:.1f} at {r['views']} views of {len(row['synthetic'])} synthetic scenes"


def nano_table(r: Mapping[str, Any]) -> Iterable[str]:
    for name, row in r["rows"].items():
        found = row["benchmarks"]["synthetic@8"]
        yield f"8 views, {name}: density {row['density']['8']:.1%}, {scores(found)}"


def parity(r: Mapping[str, Any]) -> Iterable[str]:
    for case in r["cases"]:
        usual = [e for n, e in case["relative_rms"].items() if n not in case["looser_limits"]]
        yield f"{case['case']}: worst relative RMS {max(usual):.1e}"


def parity_parts(r: Mapping[str, Any]) -> Iterable[str]:
    for name, worst in r["cases"].items():
        yield f"{name}: {'within its limit' if worst is None else f'worst {worst:.1e}'}"


def peers(r: Mapping[str, Any]) -> Iterable[str]:
    for name in ("vggt", "pi3", "da3-large"):
        for dtype in ("float32", "bfloat16"):
            for views, row in r[name][dtype].items():
                ours = row["ours"]
                yield f"{name}, {dtype}, {views} views: {ours['seconds']:.1f} s, {ours['activation_mb']:.0f} MB"


def peers_amx(r: Mapping[str, Any]) -> Iterable[str]:
    for name in ("vggt", "pi3"):
        for form, row in r[name]["8"].items():
            yield f"{name}, {form}, 8 views: {row['cpu_seconds']:.1f} CPU s, {row['activation_mb']:.0f} MB"


def refine(r: Mapping[str, Any]) -> Iterable[str]:
    for name, row in r["photos"].items():
        three = " / ".join(f"{row[way]['auc5']:.1f}" for way in ("network", "refined", "pycolmap"))
        yield f"{name}: AUC@5 of network / refined / pycolmap {three}, {row['refined']['seconds']:.1f} s"


def video(r: Mapping[str, Any]) -> Iterable[str]:
    for name, row in r["runs"].items():
        yield f"{name}: {row['views']} views, {row['median_cm']:.1f} cm in the median, {row['max_cm']:.1f} cm at most"


def exports(r: Mapping[str, Any]) -> Iterable[str]:
    for kind, row in r["nano"].items():
        yield f"nano{kind}: {row['mb']:.1f} MB, at most {max(row['differences'].values()):.1e} from the model"
    for kind in ("few", "many"):
        row = r["student"][kind]
        yield f"nano-gsa-fp8.onnx for {kind} views: {row['mb']:.1f} MB, at most {max(row['differences'].values()):.1e}"
    for name, row in r["others"].items():
        yield f"a small {name}.onnx: at most {max(row['differences'].values()):.1e} from the model"
    for row in r["seconds"]:
        yield f"nano, {row['views']} views: " + ", ".join(f"{n} {x['cpu_s']:.2f} s" for n, x in row["rows"].items())
    many = r["student"]["seconds"]
    found = ", ".join(f"{n} {x['cpu_s']:.1f} s" for n, x in many["rows"].items())
    yield f"nano-gsa-fp8, {many['views']} views: {found}"


def web_page(r: Mapping[str, Any]) -> Iterable[str]:
    yield f"the folder: {r['megabytes']:.1f} MB"
    for views, row in r["runs"].items():
        yield f"{views} photos: {row['page_s']:.1f} s in the page, {row['python_s']:.1f} s in Python"


def view(r: Mapping[str, Any]) -> Iterable[str]:
    for row in r["rows"]:
        for way, of in (("served", row["bytes_of_points"]), ("file", row["file_bytes"])):
            found, rate = row[way], row[way]["turning_frames_a_second"]
            yield (
                f"{row['points']:,} points, {way}: {of / 1e6:.1f} MB, first picture {found['first_picture_s']:.1f} s, "
                f"all points {found['all_points_s']:.1f} s, turning {rate:.1f} frames a second"
            )


def stream(r: Mapping[str, Any]) -> Iterable[str]:
    scale, angle = r["join"]["scale_percent"]["max"], r["join"]["rotation_deg"]["max"]
    yield f"{r['join']['pairs']} joins: scale {scale:.2f} % and rotation {angle:.3f} degrees off at most"
    for row in r["long"]:
        yield f"after {row['frames']:,} frames: {row['held_mb']:.1f} MB held, process {row['process_mb']:.0f} MB"
    for name, row in r["walk"].items():
        yield f"walk, {name}: ATE {row['ate_cm']:.1f} cm, {row['uncertain']} of {row['frames']} frames uncertain"
    for name, row in r["rendered"].items():
        yield f"rendered, {name}: ATE {row['ate_cm']:.0f} cm, {row['uncertain']} of {row['frames']} frames uncertain"
    for row in r["cache"]:
        over = row["cache_bytes"] / row["formula_bytes"]
        yield f"cache after {row['frames']:,} frames: {over:.3f} of the formula, {row['frame_ms']['p95']:.0f} ms (95 %)"
    for row in r["pages"]:
        yield f"cache, {row['less']}: depth changes by {row['depth_percent']:.2f} %"
    same = sum(not row["differ"] for row in r["killed"]["chains"])
    yield f"walk, killed {r['killed']['kills']} times and resumed: {same} of {len(r['killed']['chains'])} runs the same"
    yield f"outside the network: {r['share']['outside_ms']:.0f} of {r['share']['frame_ms']:.0f} ms a frame"


def renderer(r: Mapping[str, Any]) -> Iterable[str]:
    for row in r["speed"]:
        yield f"{row['mode']}, {row['size']}, {row['scenes']}: {row['views_per_s']:.1f} views/s"


def trust(r: Mapping[str, Any]) -> Iterable[str]:
    yield f"bad inputs recognised: {sum(row['hit'] for row in r['bad_inputs'].values())} of {len(r['bad_inputs'])}"
    for name, row in r["photos"].items():
        yield f"{name}: depth error {row['off']['error']:.1f} % unrefined, {row['on']['error']:.1f} % refined"


def certainty(r: Mapping[str, Any]) -> Iterable[str]:
    row = r["all"]
    sure = row["claims"] - row["warned"]
    yield f"{row['sets']} sets: {row['claims']} with certain views, {row['warned']} of these with a warning"
    yield f"without one: {row['unwarned_within_5_deg']} of {sure} within 5 degrees"
    yield f"{r['mixed']['sets']} mixed sets: {r['mixed']['certain_of_two_places']} certain of views of both places"


def house(r: Mapping[str, Any]) -> Iterable[str]:
    for when in ("before", "after"):
        yield f"{when}: {r[when]['files']} files, {r[when]['lines']:,} lines, {r[when]['functions']:,} functions"


def loading(r: Mapping[str, Any]) -> Iterable[str]:
    for row in r["rows"]:
        yield f"{row['way']}, {row['form']}, {row['dtype']}: peak {row['peak_over_target']:.2f} times the weights"


def dense(r: Mapping[str, Any]) -> Iterable[str]:
    before, after = r["before"], r["after"]
    yield f"AbsRel {before['abs_rel']:.1f} % before, {after['abs_rel']:.1f} % after, of {r['scenes']} scenes"
    yield f"normals {before['normals_deg']:.1f} degrees before, {after['normals_deg']:.1f} after"


def survey(r: Mapping[str, Any]) -> Iterable[str]:
    for name, row in r["photos"].items():
        yield f"{name}: up {row['error_deg']:.1f} degrees off, {row['cameras_deg']:.1f} from cameras alone"
    flight = r["flight"]
    cell = flight["raster"]["cell"]
    yield f"{flight['views']} aerial pictures: {flight['gps_rms_m']:.2f} m from GPS, cells of {cell} m"


def serve(r: Mapping[str, Any]) -> Iterable[str]:
    polls, kills = r["load"]["halves"][-1]["polls"], r["kills"]
    yield f"{r['load']['clients']} clients: {polls['p50_ms']:.0f} ms (median), {polls['p95_ms']:.0f} ms (95 %)"
    yield f"{kills['rounds']} rounds of kills: {kills['accepted']} jobs accepted, {len(kills['problems'])} problems"
    there, rows = r["cluster"], r["batching"]["rows"]
    yield f"{there['rounds']} on a Ray cluster: {there['accepted']} jobs accepted, {len(there['problems'])} problems"
    yield f"scenes in one pass would save {max(row['saved_of_job'] for row in rows):.1%} of a job"
    tried = [sum(one[key] for one in r["attacks"].values()) for key in ("tried", "got_through")]
    yield f"{tried[0]} attacks, {tried[1]} got through"


ROWS: dict[str, tuple[str | None, Figures]] = {
    "adapters": ("adapters.py", adapters),
    "add": ("add.py", added),
    "calibrated": ("calibrated.py", calibrated),
    "certainty": ("certainty.py", certainty),
    "compiled": ("gpu/compile.py", lambda r: [f"{len(r['variants'])} variants compiled by Triton {r['triton']}"]),
    "dense": ("dense.py", dense),
    "drills": (None, lambda r: [f"{d['drill']}: {len(d['after_by_hand'])} files by hand" for d in r["drills"]]),
    "exports": ("exports.py", exports),
    "fp8": ("fp8.py", fp8),
    "fuzz": ("fuzz.py", lambda r: [f"{r['cases']:,} cases: " + ", ".join(f"{n:,} {k}" for k, n in r["ended"].items())]),
    "gpu": (
        None,
        lambda r: [
            f"{row['row']}: {row['ms']:.4g} ms"
            for kind in ("first", "later", "models")
            for row in r[kind]["rows"]
            if "ms" in row and row["part"] in ("layer", "pi3") and "1024" in row["row"]
        ],
    ),
    "half_precision_cpu": ("half_precision.py", half_precision),
    "house": (
        "house.py",
        lambda r: [f"{w}: {r[w]['files']} files, {r[w]['lines']:,} lines" for w in ("before", "after")],
    ),
    "kills": ("kills.py", kills),
    "known": ("known.py", known),
    "lite3r_errors": ("lite3r_errors.py", lambda r: ["the table of [distil](how-to/distil.md)"]),
    "loading": (
        "loading.py",
        lambda r: [
            f"{x['way']}, {x['form']}, {x['dtype']}: peak {x['peak_over_target']:.2f} x weights" for x in r["rows"]
        ],
    ),
    "loading_data": ("loading_data.py", lambda r: [f"{x['loader']}: {x['per_second']:.0f} per s" for x in r["rows"]]),
    "looped": ("looped.py", looped),
    "melt": ("melt.py", of_rules),
    "memory_budget": (
        "memory_budget.py",
        lambda r: [f"{x['setting']}: {x['measured_mb']:.0f} MB, {x['predicted_mb']:.0f} predicted" for x in r["rows"]],
    ),
    "nano_ablations": ("ablations.py", ablations),
    "nano_accuracy": ("accuracy.py", accuracy),
    "nano_densities": ("densities.py", densities),
    "nano_many_views": ("accuracy.py", many_views),
    "nano_stream": ("nano_stream.py", of_clips),
    "nano_table": ("table.py", nano_table),
    "parallel": ("parallel.py", of_processes),
    "parity": ("parity_table.py", parity),
    "parity_parts": ("parity_parts.py", parity_parts),
    "peers": ("costs.py", peers),
    "peers_amx": ("costs.py", peers_amx),
    "refine": ("refine.py", refine),
    "regions": (
        "regions.py",
        lambda r: [f"{x['views']} views, {x['regions']} regions: recall {x['recall']:.0%}" for x in r["rows"]],
    ),
    "renderer_cpu": ("renderer.py", renderer),
    "serve": ("serve.py", serve),
    "stream": ("stream.py", stream),
    "survey": ("survey.py", survey),
    "trust": ("trust.py", trust),
    "video": ("video.py", video),
    "view": ("view.py", view),
    "web_page": ("web_page.py", web_page),
}
"""Result -> its script in benchmarks/, and what it yields as main figures; others show the numbers at their top."""
