"""Reports: every figure leads back to its JSON, what is worse is found, and what is no run is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval.made import DIRECTIONS, NAMES, SPREAD, compared, failed, make_bench, make_run, mean_pool, row, rows

from lean3r.eval.figures import sorted_figures
from lean3r.eval.report import plots
from lean3r.eval.report.bench import fit, read_benches
from lean3r.eval.report.compare import compare, intervals, of_its_own
from lean3r.eval.report.content import Report, make_report
from lean3r.eval.report.plots import pareto_front
from lean3r.eval.report.runs import read_runs
from lean3r.eval.report.writing import write_report
from lean3r.eval.runs.scores import scene_of

NOISE = 2 * np.array([1, -1, 2, -2, 0.5, -0.5, 1.5, -1.5, 3, -3, 0.2, -0.2])


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (np.full(12, -0.6), "worse"),
        (np.full(12, -0.4), "same"),
        (np.full(12, 0.6), "better"),
        (NOISE, "same"),
        (NOISE - 0.6, "unclear"),
        (NOISE - 3, "worse"),
        (NOISE + 3, "better"),
        (np.eye(12)[3] * -9, "worse"),  # one item broke, the others are the same
        (np.eye(12)[3] * -9 + NOISE / 1000, "worse"),  # but for rounding
        (np.eye(12)[3] * -9 + NOISE, "unclear"),
    ],
)
def test_a_loss_is_worse_if_it_is_beyond_the_tolerance_and_no_noise(
    tmp_path: Path, change: np.ndarray, verdict: str
) -> None:
    found = compared(tmp_path, rows(SPREAD), rows(SPREAD + change), "auc30=0.5").changes["auc30"]
    assert found.verdict == verdict
    assert found.difference == pytest.approx(change.mean())
    lower = [row(n, 50, abs_rel=float(v)) for n, v in zip(NAMES, SPREAD, strict=True)]
    higher = [row(n, 50, abs_rel=float(v)) for n, v in zip(NAMES, SPREAD - change, strict=True)]
    assert compared(tmp_path / "lower", lower, higher, "abs_rel=0.5").changes["abs_rel"].verdict == verdict


def auc30_alone(_: str, some: Sequence[Mapping[str, Any]], counts: np.ndarray) -> dict[str, np.ndarray]:
    """A quick pool."""
    return {"auc30": counts @ np.array([each["figures"]["auc30"] for each in some]) / counts.sum(1)}


def test_the_gate_does_not_cry_on_noise_and_finds_a_loss(tmp_path: Path) -> None:
    """Two runs whose items differ by noise of 3 points: with 12 items the error of the mean is about 1."""
    rng = np.random.default_rng(0)
    verdicts = {0: list[str](), -5: list[str]()}
    for loss, found in verdicts.items():
        for trial in range(30):
            place = tmp_path / f"{loss} {trial}"
            folders = (
                make_run(place / "a", rows(SPREAD)),
                make_run(place / "b", rows(SPREAD + loss + rng.normal(0, 3, 12))),
            )
            runs = read_runs(folders)
            (one,) = compare(runs, runs[0], auc30_alone, {})
            found.append(one.changes["auc30"].verdict)
    assert verdicts[0].count("worse") <= 3  # 2.5 % are expected
    assert verdicts[-5].count("worse") >= 29


def test_intervals_are_those_of_the_mean(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(50, 8, 12)
    (run,) = read_runs([make_run(tmp_path / "run", rows(values))])
    found = intervals(run.scores["made-4"], mean_pool)["auc30"]
    assert found is not None
    error = values.std() / math.sqrt(12)
    assert (found.low + found.high) / 2 == pytest.approx(values.mean(), abs=0.3 * error)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_items_of_one_scene_are_drawn_together(tmp_path: Path) -> None:
    """Four scenes whose 25 items each are equal: 100 items tell no more than 4, and the interval is that of 4."""
    levels = np.array([20.0, 40.0, 50.0, 70.0])
    few = [row(f"scene{n:04}_00/0-1", float(level)) for n, level in enumerate(levels)]
    many = [row(f"scene{n:04}_00/0-{i}", float(level)) for n, level in enumerate(levels) for i in range(25)]
    runs = read_runs([make_run(tmp_path / name, each, "scannet1500") for name, each in (("few", few), ("many", many))])
    spans = [intervals(run.scores["scannet1500"], mean_pool, scene_of)["auc30"] for run in runs]
    alone = intervals(runs[1].scores["scannet1500"], mean_pool)["auc30"]
    assert spans[0] is not None and spans[1] is not None and alone is not None
    assert (spans[1].low, spans[1].high) == pytest.approx((spans[0].low, spans[0].high))
    assert alone.high - alone.low < 0.3 * (spans[1].high - spans[1].low)
    (one,) = read_runs([make_run(tmp_path / "one", many[:25], "scannet1500")])
    assert intervals(one.scores["scannet1500"], mean_pool, scene_of)["auc30"] is None


def test_the_gate_does_not_take_pairs_of_a_scene_for_evidence(tmp_path: Path) -> None:
    """Three scenes lose 9 points, three win 6: unclear, however many pairs each has."""
    change = np.repeat([-9.0, 6.0, -9.0, 6.0, -9.0, 6.0], 30)
    names = [f"scene{n // 30:04}_00/0-{n}" for n in range(180)]
    folders = [
        make_run(tmp_path / name, [row(i, 50 + float(c)) for i, c in zip(names, values, strict=True)], "scannet1500")
        for name, values in (("a", 0 * change), ("b", change))
    ]
    runs = read_runs(folders)
    for own_scene, verdict in ((scene_of, "unclear"), (of_its_own, "worse")):
        (found,) = compare(runs, runs[0], auc30_alone, {}, own_scene)
        assert found.changes["auc30"].verdict == verdict


@pytest.mark.parametrize(
    ("benchmark", "item", "scene"),
    [
        ("scannet1500", "scene0707_00/15-585", "scene0707"),
        ("scannet-trajectory", "scene0707_02", "scene0707"),
        ("7scenes-points-dense", "chess/seq-03", "chess"),
        ("nrgbd-points", "kitchen", "kitchen"),
        ("co3dv2", "apple/110_13051_23361", "apple/110_13051_23361"),  # a category is no scene
        ("synthetic@4", "0003", "0003"),
    ],
)
def test_scenes_of_items(benchmark: str, item: str, scene: str) -> None:
    assert scene_of(benchmark, item) == scene


def test_tables_of_papers_stand_beside_ours(tmp_path: Path) -> None:
    """Only tables with a benchmark of a run; every figure leads to report.json, as printed."""
    rows = [row("a", 70.123, network_seconds=2.0), row("b", 72.0, network_seconds=6.0)]
    made = make_run(tmp_path / "run", rows, "tanks")
    report = make_report(read_runs([made]), mean_pool, {}, [], tmp_path / "report")
    (tmp_path / "report").mkdir()
    write_report(report, tmp_path / "report", "0.1.0")
    page = Page((tmp_path / "report" / "report.html").read_text())
    told = [(source, text) for source, _, text in page.figures if "#/papers/" in source]
    assert all(resolve(tmp_path / "report", source) == text for source, text in told)
    found = dict(told)
    at = "report.json#/papers/speed3r-table3"
    assert found[f"{at}/printed/Speed3R-Pi3/tanks auc30"] == "79.77"
    assert found[f"{at}/ours/run/tanks network_seconds"] == "4.00", "the median"
    assert found[f"{at}/ours/run/tanks auc30"] == "71.06" and f"{at}/ours/run/tanks rra5" not in found
    record = json.loads((tmp_path / "report" / "report.json").read_text())["papers"]
    assert list(record) == ["speed3r-table3", "speed3r-table5"]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Speed3R, Table 3: Tanks and Temples, about 300 views (Ren et al. 2026" in text
    assert "run (measured)" in text and "Printed seconds are of one H100" in text


def test_items_that_fail_or_lose_their_figure_are_worse(tmp_path: Path) -> None:
    good = rows(SPREAD)
    broken = compared(tmp_path / "failed", good, [failed(NAMES[0]), *good[1:]])
    assert (broken.failed, broken.worse, broken.items) == ([NAMES[0]], [], 11)
    lost = compared(tmp_path / "lost", good, [row(NAMES[0], 10.0, abs_rel=None), *good[1:]])
    assert lost.worse == ["abs_rel"] and lost.changes["abs_rel"].difference == 0
    nothing = compared(tmp_path / "all", good, [failed(name) for name in NAMES])
    assert nothing.failed == NAMES and nothing.items == 0
    repaired = compared(tmp_path / "repaired", [failed(NAMES[0]), *good[1:]], good)
    assert not repaired.failed and not repaired.worse


def test_what_only_one_run_has_is_said_and_not_compared(tmp_path: Path) -> None:
    found = compared(tmp_path, rows(SPREAD)[:8], rows(SPREAD)[4:])
    assert (found.items, found.only_before, found.only_after) == (4, NAMES[:4], NAMES[8:])
    assert set(found.changes[figure].verdict for figure in DIRECTIONS) == {"same"}


def test_the_last_tolerance_whose_pattern_fits_counts(tmp_path: Path) -> None:
    found = compared(tmp_path, rows(SPREAD), rows(SPREAD - 6), "auc*=1", "auc30*=8", "auc30=4").changes
    tolerances = {figure: change.tolerance for figure, change in found.items()}
    assert tolerances == {"auc5": 1.0, "auc30": 4.0, "auc30_pi3": 8.0, "abs_rel": 0.5}
    assert [figure for figure, change in found.items() if change.verdict == "worse"] == ["auc5", "auc30"]


def test_costs_are_compared_where_a_tolerance_asks_for_it(tmp_path: Path) -> None:
    slower = rows(SPREAD, seconds=2.0)
    assert "seconds" not in compared(tmp_path / "no", rows(SPREAD), slower).changes
    assert compared(tmp_path / "yes", rows(SPREAD), slower, "seconds=20%").worse == ["seconds"]


class Page(HTMLParser):
    """Figures (source, value, text) of a page, texts of cells without one, and everything it loads."""

    def __init__(self, text: str):
        super().__init__()
        self.figures: list[tuple[str, str, str]] = []
        self.plain: list[str] = []
        self.loads: list[str] = []
        self.alts: list[str] = []
        self.captions = self.tables = 0
        self._inside: list[Any] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data")]
        self.loads += [tag] if tag in ("script", "link", "iframe", "object") else []
        self.alts += [given.get("alt") or ""] if tag == "img" else []
        self.tables += tag == "table"
        self.captions += tag == "caption"
        if tag in ("td", "data"):
            self._inside.append((tag, given))
        if tag == "data":
            self.figures.append((given["data-from"] or "", given["value"] or "", ""))

    def handle_endtag(self, tag: str) -> None:
        if self._inside and tag == self._inside[-1][0]:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if self._inside and self._inside[-1][0] == "data":
            source, value, text = self.figures.pop()
            self.figures.append((source, value, text + data))
        elif self._inside:
            self.plain.append(data)


def resolve(folder: Path, source: str) -> Any:
    """The value that a source names."""
    file, _, pointer = source.partition("#")
    value = json.loads((folder / file).read_text())
    for key in pointer.split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        value = value[int(key) if isinstance(value, list) else key]
    return value


def is_shown_as(value: Any, text: str) -> bool:
    """Whether a text is a value, rounded to its last digit."""
    if not isinstance(value, float):
        return text == ("–" if value is None else str(value))
    rounded = f"{value:.1f}".replace("-0.0", "0.0"), f"{value:.3g}", f"{value:,.0f}"
    return text.removeprefix("+") in rounded


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A report of three runs with everything that can be in one, and hostile names."""
    root = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(1)
    pictured = [each | {"picture": f"{each['id']}/pictures.jpg"} for each in rows(SPREAD)]
    evil = row("a|b <script>alert(1)</script> *c* `d`", 5.0, picture="../../outside.jpg")
    runs = [
        make_run(root / "nano", [*pictured, evil]),
        make_run(root / "au~c30", [*rows(SPREAD - 8), failed("late"), evil], plan="gsa", lean3r="<b>0.1"),
        make_run(root / "refined", [*rows(SPREAD + rng.normal(9, 2, 12), network_seconds=1234.5), evil]),
    ]
    make_run(root / "nano", pictured[:2], "other/bench")
    about = json.loads((root / "nano" / "run.json").read_text())
    about["benchmarks"] |= {"made-4": {}, "absent": {}}
    (root / "nano" / "run.json").write_text(json.dumps(about))
    bench = make_bench(root / "bench.json", {"dense": 1.8, "gsa": 1.1})
    folder = root / "reports" / "report"
    report = make_report(read_runs(runs), mean_pool, {}, read_benches([bench]), folder)
    folder.mkdir(parents=True)
    write_report(report, folder, "0.1.0")
    return folder, report


def test_every_figure_of_the_page_leads_to_its_json(written: tuple[Path, Report]) -> None:
    folder, _ = written
    page = Page((folder / "report.html").read_text())
    assert len(page.figures) > 300
    for source, value, text in page.figures:
        found = resolve(folder, source)
        assert str(found) == value and is_shown_as(found, text), (source, found, value, text)
    assert [text for text in page.plain if re.search(r"\d", text) and "item" not in text and "auc" not in text] == []
    files = {source.partition("#")[0] for source, _, _ in page.figures}
    assert {"report.json", "../../bench.json", "../../nano/made-4/scores.json", "../../nano/run.json"} <= files


def test_every_figure_of_the_tables_in_markdown_leads_to_its_json(written: tuple[Path, Report]) -> None:
    folder, _ = written
    checked, keys = 0, list[str]()
    for line in (folder / "report.md").read_text().splitlines():
        cells = [part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells or set(cells) == {"---"}:
            continue
        if cells[-1] == "from":
            keys = [re.findall(r"`([^`]+)`", each)[-1] if "`" in each else each.split(" ")[0] for each in cells[:-1]]
            continue
        sources = re.findall(r"`([^`]+)`", cells[-1])
        for key, text in zip(keys[1:], cells[1:-1], strict=True):
            values = []
            for source in sources:
                try:
                    values.append(resolve(folder, source.replace("*", key)))
                except (KeyError, TypeError, IndexError):
                    continue
            values += [inner for value in values if isinstance(value, dict) for inner in value.values()]
            numbers = [value for value in values if isinstance(value, int | float)]
            for shown in re.findall(r"(?<![\w.])[+-]?\d[\d,.e+]*\b", text.replace("*", "")):
                if any(isinstance(value, str) and shown in value for value in values):
                    continue
                assert any(is_shown_as(value, shown) for value in numbers), (line, key, shown)
                checked += 1
    assert checked > 300


def test_the_page_needs_no_network_and_says_everything_in_words(written: tuple[Path, Report]) -> None:
    folder, _ = written
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert all(load.startswith(("data:image/svg+xml;base64,", "data:image/jpeg;base64,")) for load in page.loads)
    assert len(page.loads) > 8 and all(page.alts) and page.captions == page.tables > 8
    assert "<script" not in text and "<b>" not in text and "prefers-color-scheme: dark" in text
    for plot in (folder / "plots").iterdir():
        assert "<text" in plot.read_text() and "http" not in re.sub(
            r'(xmlns(:\w+)?|rdf:\w+)="[^"]*"', "", plot.read_text()
        )


def test_the_page_says_who_lost_where(written: tuple[Path, Report]) -> None:
    _, report = written
    (text,) = report.worse
    assert (
        text.startswith("au~c30, made-4: auc5 ")
        and "auc30 37.3 -> 29.9 (-7.4, 95 % -8.0 to -6.2, tolerance 0.5)" in text
    )
    assert any("absent has no scores yet (lean3r score " in each for each in report.warnings)
    assert any("au~c30, made-4: 1 of 14 items failed (late)" in each for each in report.warnings)
    assert any("other/bench is in nano only" in each for each in report.warnings)


def test_pictures_come_from_inside_the_run(written: tuple[Path, Report]) -> None:
    folder, _ = written
    assert (folder.parents[1] / "outside.jpg").is_file()
    names = [path.name for path in (folder / "pictures").iterdir()]
    assert names and all(name.startswith("nano-") and not name.endswith("-12.jpg") for name in names)


def test_a_report_is_the_same_every_time(written: tuple[Path, Report], tmp_path: Path) -> None:
    folder, report = written
    write_report(report, tmp_path, "0.1.0")
    for name in ("report.html", "report.md", "report.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_main_figures_come_first_and_variants_are_those_beside_them() -> None:
    names = ["allpairs_auc5", "rra5", "auc5_pi3", "rra5_da3", "delta1", "auc5", "abs_rel", "abs_rel_shift"]
    main, variants = sorted_figures(names)
    assert main == ["auc5", "abs_rel", "delta1", "abs_rel_shift", "rra5"]
    assert variants == ["allpairs_auc5", "auc5_pi3", "rra5_da3"]
    assert sorted_figures(["rotation_deg", "auc5_exact"]) == (["auc5_exact", "rotation_deg"], [])


def test_many_runs_can_be_told_apart() -> None:
    """There are fewer colours than runs: the bars of later ones are hatched, each in its own way."""
    drawing = plots.bars(["a scene"], {f"run {number}": [1.0] for number in range(2 * len(plots.COLOURS) + 1)}, "auc30")
    hatches = set(re.findall(r"url\(#(\w+)\)", drawing))
    assert len([name for name in hatches if f'<pattern id="{name}"' in drawing]) == len(plots.COLOURS) + 1


def test_growth_is_fitted(tmp_path: Path) -> None:
    (bench,) = read_benches([make_bench(tmp_path / "bench.json", {"dense": 1.8, "gsa": 1.1})])
    found = fit(bench, "nano dense", "seconds", "bench.json")
    assert found is not None
    assert (found.exponent, found.end_exponent, found.scale) == pytest.approx((1.8, 1.8, 0.01))
    (one,) = read_benches([make_bench(tmp_path / "one.json", {"dense": 1.8}, views=[4])])
    assert fit(one, "nano dense", "seconds", "one.json") is None


def test_the_front_has_what_nothing_beats() -> None:
    points = {"slow": (9.0, 50.0), "fast": (1.0, 30.0), "beaten": (2.0, 29.0), "tied": (9.0, 50.0), "mid": (3.0, 40.0)}
    assert pareto_front(points, True) == ["fast", "mid", "slow"]
    assert pareto_front(points, False) == ["fast", "beaten"]
