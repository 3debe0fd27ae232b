"""The tables of the pages that are made from tables of the code: `make tables` writes them anew.

A page has them between `<!-- table NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lean3r.attention import ATTENTION
from lean3r.cli import COMMANDS
from lean3r.compress import PLANS, SCHEMES
from lean3r.compress.plan import CompressionPlan, Step
from lean3r.data import DATASETS
from lean3r.data.sampling.lite3r import HELD_OUT
from lean3r.export import EXPORTERS
from lean3r.models import CARDS, EMBEDDED, MODELS, is_non_commercial
from lean3r.models.base import KNOWN_PARTS
from lean3r.registry import Registry
from lean3r.train import DISTILLATIONS, RECIPES
from lean3r.train.recipes.distilled import Distillation, Phase

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACE = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
GUIDE = re.compile(r"\bdocs/([\w./-]+\.md)")


def main() -> None:
    """Write every table of every page, and say which pages changed."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (now := with_tables(text)) != text:
            page.write_text(now, encoding="utf-8")
            print(page.relative_to(ROOT))


def with_tables(text: str) -> str:
    """A page with its tables as they are now; KeyError for one that nobody makes."""
    return PLACE.sub(lambda place: f"{place[1]}{TABLES[place[2]]()}{place[3]}", text)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(text: str, separator: str = ", ") -> str:
    """`a`, `b` of "a, b"."""
    return separator.join(f"`{part}`" for part in text.split(separator))


def says(thing: object) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def commands() -> str:
    """What each command does, and the page that its docstring names."""

    def row(name: str) -> list[str]:
        guides = GUIDE.findall(inspect.getdoc(COMMANDS.get(name)) or "")
        return [f"`lean3r {name}`", says(COMMANDS.get(name)), ", ".join(f"[{Path(g).stem}]({g})" for g in guides)]

    return table(["command", "what it does", "more"], map(row, COMMANDS))


def formats() -> str:
    """What each format writes."""
    rows = (
        [code(row.files), row.about, f"`{name}`" + ("" if row.default else ", if asked for")]
        for name, row in ((name, EXPORTERS[name]) for name in EXPORTERS)
    )
    return table(["in the folder", "what it holds", "format"], rows)


def files() -> str:
    """The files of the folder, in a sentence."""
    by_default, on_request = (
        ", ".join(
            dict.fromkeys(code(row.files) for row in map(EXPORTERS.__getitem__, EXPORTERS) if row.default == wanted)
        )
        for wanted in (True, False)
    )
    return f"{by_default}; on request {on_request}.\n"


def models() -> str:
    """Where the weights of each model are, under which licence, and who says so."""

    def row(name: str) -> list[str]:
        card = CARDS[name]
        inside = "in the package" if (EMBEDDED / f"{name}.safetensors").is_file() else "none: train it, or give a file"
        stated = f"[its authors]({card.stated})" if card.stated else "this repository"
        licence = card.licence + (", non-commercial" if is_non_commercial(card.licence) else "")
        return [f"`{name}`", f"`{card.repository}`" if card.repository else inside, licence, stated]

    return table(["model", "official repository", "licence of the weights", "stated by"], map(row, CARDS))


def cameras() -> str:
    """Which known cameras each model reads, and whether one of its views is the reference."""

    def row(name: str) -> list[str]:
        kind = MODELS.get(name)
        reads = ", ".join(text for part, text in KNOWN_PARTS.items() if part in kind.ACCEPTS)
        some = "no: all parts, for all views" if kind.ACCEPTS_WHOLE else "yes" if reads else ""
        return [f"`{name}`", reads or "none", some, "yes" if kind.REFERENCE is not None else "no"]

    return table(
        ["model", "known parts that it reads", "for a subset of views", "`--reference-view`"], map(row, MODELS)
    )


def mechanisms() -> str:
    """What each mechanism does, its settings, and what its docstring says of source, time and use."""
    labels = ("Source", "Time", "Use")

    def row(name: str) -> list[str]:
        kind = ATTENTION.get(name)
        given = [
            p for p in inspect.signature(kind).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        settings = ", ".join(f"`{p.name}` ({p.default!r})" for p in given if p.default is not p.empty)
        lines = dict(re.findall(r"^(\w+): (.*)\.$", inspect.getdoc(kind) or "", re.MULTILINE))
        return [f"`{name}`", says(kind), settings, *(lines.get(label, "") for label in labels)]

    return table(["name", "what it does", "settings (defaults)", *map(str.lower, labels)], map(row, ATTENTION))


def described(what: str, registry: Registry, names: Iterable[str] | None = None) -> str:
    """The rows of a registry, as the docstrings of their objects say."""
    rows = ([f"`{name}`", says(registry.get(name))] for name in (registry if names is None else names))
    return table([what, "what it does"], rows)


def plans(of_attention: bool) -> str:
    """The plans that change attention, or those that change numbers."""
    chosen = [n for n in PLANS if any(isinstance(s, Step) == of_attention for s in PLANS.get(n)().steps)]
    return described("plan", PLANS, chosen)


def distillations() -> str:
    """Teacher, student and phases of each recipe."""

    def row(name: str) -> list[str]:
        recipe = DISTILLATIONS.get(name)(None)
        phases = ", ".join(f"{phase.config.name} ({phase.config.total_steps:,})" for phase in recipe.phases)
        about = f"{says(inspect.getmodule(DISTILLATIONS.get(name)))} {says(DISTILLATIONS.get(name))}"
        student = f"`{recipe.plan.name}`" if recipe.plan else f"none: a `{recipe.student}`"
        return [f"`{name}`", f"`{recipe.teacher}`", student, phases, about]

    return table(["recipe", "teacher", "plan of the student", "phases (steps)", "what it is"], map(row, DISTILLATIONS))


def data_sets() -> str:
    """The sets on disk; the synthetic world is none."""

    def row(name: str) -> list[str]:
        kind = DATASETS.get(name)
        depth, metres = ("yes" if has else "no" for has in (kind.has_depth, kind.is_metric))
        return [f"`{name}`", kind.title, depth, metres, kind.licence, kind.source]

    header = ["name", "set", "depth", "metres", "licence", "where to get it"]
    return table(header, [row(name) for name in DATASETS if hasattr(DATASETS.get(name), "title")])


FORMS = ("", "-as-released", "-lean")
DRAWN = {
    "pairs": "one of every scene an epoch, any two views, cut at the centre; the first scenes of a set, a quarter but "
    f"at most {HELD_OUT}, are left out for evaluation",
    "pairs-as-released": "the same of all scenes, also those for evaluation; the number of planes in a camera file is "
    "taken for the farthest depth",
    "mixture": "scenes at random, two views that overlap, augmented",
}
LOSSES = {
    "lite3r corrected": "L1 of the cameras after every iteration of the head, with weights 0.6 ^ age and one fitted "
    "scale; depth with a fitted scale, plain and times confidence, without the largest 5 %. True cameras relative to "
    "the first view; predictions that are not finite are left out",
    "lite3r as-released": "the same with true cameras in the world of the data set; one depth of NaN gives gradients "
    "of NaN to all",
    "lite3r-lean": "L1 of the final cameras and of depth, in units of the mean depth; true cameras relative to the "
    "first view",
}


def stages(recipe: Distillation, cell: Callable[[Phase], str]) -> str:
    """A cell of both stages, or of each if they differ."""
    first, second = map(cell, recipe.phases)
    return first if first == second else f"stage 1: {first}; stage 2: {second}"


def keys(plan: CompressionPlan) -> str:
    """How the softmax branch chooses."""
    (step,) = plan.exchanges
    mode, keep = step.settings.get("mode", "block"), step.settings.get("keep", 0.3)
    return f"{100 * keep:g} %, {'one by one' if mode == 'token' else 'in blocks of 64'}"


def rounding(plan: CompressionPlan) -> str:
    """The steps for linear layers."""
    steps = []
    for step in plan.quantizes:
        left = f" except {', '.join(f'`{t}`' for t in step.leave_out)}" if step.leave_out else ""
        steps.append(f"`{step.quantize}`: `{step.target}`{left}")
    return "; ".join(steps)


def rate(phase: Phase) -> str:
    """The schedule."""
    o = phase.config.optim
    first = 0 if o.schedule == "linear" else o.lr / o.warmup_steps
    return f"{o.lr:g}, {o.warmup_steps} steps from {first:.2g}, then {o.schedule} to {o.final_lr_ratio:g} of it"


def decay(phase: Phase) -> str:
    """Weight decay of what trains."""
    o = phase.config.optim
    return "none" if "proj_lin" in o.undecayed else f"{o.weight_decay:g}"


def pictures(phase: Phase) -> str:
    """Size and normalisation."""
    (stage,) = phase.config.stages
    raw = phase.settings.get("pictures") == "raw"
    return f"{stage.width} x {stage.height}, {'not normalised' if raw else 'as the model normalises them'}"


def loss(phase: Phase) -> str:
    """What the objective compares."""
    return LOSSES[f"{phase.objective} {phase.settings.get('form', '')}".strip()]


def guard(phase: Phase) -> str:
    """Which steps are skipped."""
    factor = phase.config.explode_factor
    large = f", and with a gradient above {factor:g} medians" if factor else ""
    return f"that are not finite{large}"


ROWS: tuple[tuple[str, str, Callable[[Distillation], str]], ...] = (
    ("attention replaced", "plan", lambda r: f"`{r.phases[-1].plan.exchanges[0].target}`"),  # type: ignore[union-attr]
    ("keys of the softmax branch", "plan", lambda r: keys(plan_of(r, 1))),
    ("stage 1 rounds", "plan", lambda r: rounding(plan_of(r, 0))),
    ("stage 2 rounds", "plan", lambda r: rounding(plan_of(r, 1))),
    ("pictures", "height pictures", lambda r: stages(r, pictures)),
    ("pairs", "data", lambda r: DRAWN[r.data.drawn]),
    ("loss", "objective form", lambda r: stages(r, loss)),
    ("learning rate", "optim.schedule optim.final_lr_ratio", lambda r: stages(r, rate)),
    ("betas of AdamW", "optim.betas", lambda r: stages(r, lambda p: "{:g}, {:g}".format(*p.config.optim.betas))),
    ("weight decay of `proj_lin`", "optim.undecayed", lambda r: stages(r, decay)),
    ("steps skipped (the release: none)", "explode_factor", lambda r: stages(r, guard)),
)
"""(title, the entries of the recipe that it covers, cell)."""


def plan_of(recipe: Distillation, phase: int) -> CompressionPlan:
    """The plan of a phase, which has one."""
    plan = recipe.phases[phase].plan
    assert plan is not None
    return plan


def lite3r_forms() -> list[list[str]]:
    """The rows, with a column for each form; cells of VGGT and of Depth Anything 3 if they differ."""

    def cell(read: Callable[[Distillation], str], form: str) -> str:
        vggt, da3 = (read(DISTILLATIONS.get(f"lite3r-{name}{form}")(None)) for name in ("vggt", "da3"))
        return vggt if vggt == da3 else f"VGGT {vggt}; Depth Anything 3 {da3}"

    return [[title, *(cell(read, form) for form in FORMS)] for title, _, read in ROWS]


def covered() -> set[str]:
    """Names of the entries that the rows cover."""
    return {name for _, names, _ in ROWS for name in names.split()}


def leaves(value: Any, path: str = "") -> dict[str, object]:
    """The entries of a recipe by their path, without the numbers of lists."""
    if isinstance(value, dict):
        return {k: v for key, child in value.items() for k, v in leaves(child, f"{path}.{key}").items()}
    if isinstance(value, list | tuple) and any(isinstance(child, dict) for child in value):
        return {k: v for n, child in enumerate(value) for k, v in leaves(child, f"{path}#{n}").items()}
    return {path: value}


def lite3r_errors() -> str:
    """What the errors of Lite3R's release cost, from the file of the benchmark; trained figures as a range of seeds."""
    found = json.loads((ROOT / "benchmarks/results/lite3r_errors.json").read_text(encoding="utf-8"))
    runs = found["trained, by seed"]

    def span(values: Sequence[float], form: str) -> str:
        return " to ".join(dict.fromkeys(format(pick(values), form) for pick in (min, max)))

    def seeds(rows: Sequence[dict[str, float]]) -> str:
        degrees, depth = ([row[name] for row in rows] for name in ("rot_err_deg", "abs_rel"))
        return f"{span(degrees, '.1f')} deg, AbsRel {span([100 * value for value in depth], '.1f')} %"

    def change(after: Sequence[dict[str, float]], before: Sequence[dict[str, float]]) -> str:
        degrees, depth = (
            [now[name] - then[name] for now, then in zip(after, before, strict=True)]
            for name in ("rot_err_deg", "abs_rel")
        )
        return f"{span(degrees, '+.1f')} deg, AbsRel {span([100 * value for value in depth], '+.1f')} points"

    evaluation, pictures = found["evaluation of the dense nano"], found["pictures of the dense nano"]
    cameras, nan = found["camera loss of the true cameras"], found["one depth of NaN: share of gradients that are NaN"]
    own = runs["test scenes are training scenes"]
    rows = [
        ["true cameras in the data set's world", "camera loss of a network that predicts the truth"]
        + [f"{cameras[form]:g}" for form in ("corrected", "as-released")],
        ["", f"student after {found['steps']} steps, {len(own)} seeds"]
        + [seeds(runs[form]) for form in ("corrected", "as-released")],
        ["pictures without normalisation", "dense nano"]
        + [seeds([pictures[name]]) for name in ("normalised", "raw")],
        ["poses inverted in the evaluation", "dense nano, Chamfer distance; F-score"]
        + [f"{evaluation[n]['chamfer']}; {evaluation[n]['fscore_5cm']:.2f}" for n in ("da3", "da3-as-released")],
        [
            "test scenes are training scenes",
            f"change from the dense nano by {found['steps']} steps on {found['few']} pairs",
            change([row["others"] for row in own], [evaluation["da3"]] * len(own)) + " on other scenes",
            change([row["its scenes"] for row in own], [row["dense, its scenes"] for row in own]) + " on its own",
        ],
        ["one depth of NaN", "share of depths with a gradient of NaN; loss"]
        + [f"{100 * nan[f]:g} %; {nan[f'loss, {f}']:g}" for f in ("corrected", "as-released")],
    ]  # fmt: skip
    return table(["error", "measured", "corrected", "as released"], rows)


def interval(found: dict[str, float]) -> str:
    """A difference with its interval."""
    return f"{found['mean']:+.1f} ({found['low']:+.1f} to {found['high']:+.1f})"


def densities(figure: str) -> str:
    """Differences of sparse students from dense nano, by the number of views, with the share of pairs or without."""
    found = json.loads((ROOT / "benchmarks/results/nano_densities.json").read_text(encoding="utf-8"))["views"]
    views = sorted(found, key=int)
    names = [name for name in found[views[0]] if name != "dense"]

    def cell(row: dict[str, Any]) -> str:
        share = f", {row['density']:.0%}" if figure == "auc30" else ""
        return interval(row["against_dense"][figure]) + share

    rows = [
        [name.replace("gsa-fp8", "`nano-gsa-fp8`"), *(cell(found[count][name]) for count in views)] for name in names
    ]
    return table(["", *(f"{count} views" for count in views)], rows)


def ablations() -> str:
    """The papers' ablations on nano: differences from dense nano and from the base, over all seeds."""
    found = json.loads((ROOT / "benchmarks/results/nano_ablations.json").read_text(encoding="utf-8"))
    rows = [
        [
            name,
            f"{found['runs'][name][0]['density']:.0%}",
            *(interval(against[figure]) for figure in ("auc30", "abs_rel")),
            interval(found["against_base"][name]["auc30"]),
        ]
        for name, against in found["against_dense"].items()
    ]
    return table(["", "density", "AUC@30 - dense", "AbsRel - dense", "AUC@30 - base"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "formats": formats,
    "files": files,
    "models": models,
    "cameras": cameras,
    "mechanisms": mechanisms,
    "attention-plans": lambda: plans(True),
    "number-plans": lambda: plans(False),
    "schemes": lambda: described("scheme", SCHEMES),
    "recipes": lambda: described("recipe", RECIPES),
    "distillations": distillations,
    "lite3r-forms": lambda: table(["", "`lite3r-*`", "`lite3r-*-as-released`", "`lite3r-*-lean`"], lite3r_forms()),
    "lite3r-errors": lite3r_errors,
    "densities": lambda: densities("auc30"),
    "densities-depth": lambda: densities("abs_rel"),
    "ablations": ablations,
    "data-sets": data_sets,
}

if __name__ == "__main__":
    main()
