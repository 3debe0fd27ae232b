"""The rounds of a benchmark: programs take turns, rows are written as they come, failures are rows."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from lean3r import __version__
from lean3r.bench.exponents import exponents
from lean3r.bench.machine import Others, hardware, load_average
from lean3r.bench.programs import check_plans
from lean3r.bench.settings import DENSE, Cell, Program, Settings, size_text
from lean3r.bench.verify import EQUAL_DB
from lean3r.bench.worker import Failed, Worker
from lean3r.errors import InputError, UsageError
from lean3r.json_text import parse_json
from lean3r.scratch import DISK_FULL, atomic_file, temporary_folder

FORMAT = 1
SAME = ("repeats", "threads", "whole", "refine")
"""Settings that rows of one file share."""
KNOWN = ("device", "dtype", "weights", "weight_bytes", "start_seconds")
"""What a row has from the start of its program."""
KEY = ("model", "plan", "program", "views", "asked")
Row = dict[str, Any]


def bench(
    settings: Settings,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    say: Callable[[Row], object] = lambda row: None,
) -> Row:
    """Measure everything that `settings` name; `out` is a JSON file (docs/how-to/benchmark.md), written after each row.

    `resume` goes on with the file of an earlier run: what has rows there, failures included, is not measured again.
    `say` is called with each new row. UsageError for a plan that no model accepts, for a file that
    exists without `resume` or `overwrite`, or cannot be continued, and if the disk is full; InputError if every row is
    a failure.
    """
    check_plans(settings)
    try:
        result = _begin(settings, out, resume, overwrite)
        with temporary_folder("bench") as folder:
            runner = _Runner(settings, result, out, folder, say)
            for model in settings.models:
                runner.run(model)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise UsageError(
            f"the disk is full at {error.filename or out}: rows that were finished are kept. Free some space, then run "
            "the command again with --resume."
        ) from error
    if result["rows"] and all(row["error"] for row in result["rows"]):
        first = result["rows"][0]
        raise InputError(f"nothing could be measured; the first reason, of {first['model']}: {first['error']}")
    return result


def _begin(settings: Settings, out: Path, resume: bool, overwrite: bool) -> Row:
    """The file's content before the run: new, or that of an earlier run; written, to find out now if that fails."""
    machine = hardware()
    if out.is_dir():
        raise UsageError(f"{out} is a folder; expected the name of a .json file for -o.")
    result: Row = {
        "format": FORMAT,
        "lean3r": __version__,
        "recorded": date.today().isoformat(),
        "hardware": machine,
        "load": {"average_before": load_average(), "average_after": None},
        "settings": settings.as_dict(),
        "roofline": {},
        "rows": [],
        "exponents": {},
    }
    if out.exists() and resume:
        earlier = _read(out)
        for name, now, then in (
            ("hardware", machine, earlier["hardware"]),
            ("lean3r", __version__, earlier["lean3r"]),
            *(
                (name, result["settings"][name], earlier["settings"].get(name, getattr(Settings, name)))
                for name in SAME
            ),
        ):
            if now != then:
                raise UsageError(f"{out} was made with {name} {then}; this run has {now}. Name another file.")
        before, now = earlier["settings"].get("weights", {}), result["settings"]["weights"]
        for model in {row["model"] for row in earlier["rows"]} & set(settings.models):
            if (one := before.get(model, "the usual ones")) != (other := now.get(model, "the usual ones")):
                raise UsageError(
                    f"{out} was made with {one} as weights of {model}; this run has {other}. Name another file."
                )
        result["settings"]["weights"] = before | now
        result |= {"rows": earlier["rows"], "roofline": earlier["roofline"], "load": earlier["load"]}
    elif out.exists() and not overwrite:
        raise UsageError(f"{out} exists. Use --resume to go on with it, --overwrite to replace it, or another -o.")
    _write(result, out)
    return result


def _read(path: Path) -> Row:
    """A file of `bench`; UsageError for another or a later one."""
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            version = found.get("format") if isinstance(found, dict) else None
            raise UsageError(f"{path} has format {version}; expected {FORMAT}, a file of `lean3r bench`.")
        if missing := {"lean3r", "hardware", "settings", "rows", "roofline", "load"} - found.keys():
            raise UsageError(f"{path} is no file of `lean3r bench`: it lacks {', '.join(sorted(missing))}.")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}. Use --overwrite or another -o.") from error
    return found


def _write(result: Row, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out) as part:
            part.write_text(_text(result), encoding="utf-8")
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{out} cannot be written: {error.strerror} ({error.filename}). Use another -o.") from error


def _text(result: Row) -> str:
    """JSON with a line for each row."""
    lines = {name: json.dumps(value, allow_nan=False) for name, value in result.items()}
    lines["rows"] = "[\n" + ",\n".join(json.dumps(row, allow_nan=False) for row in result["rows"]) + "\n]"
    return "{\n" + ",\n".join(f'"{name}": {line}' for name, line in lines.items()) + "\n}\n"


class _Runner:
    """The processes of one model at a time, and the result that grows."""

    def __init__(self, settings: Settings, result: Row, out: Path, folder: Path, say: Callable[[Row], object]) -> None:
        self.settings, self.result, self.out, self.folder, self.say = settings, result, out, folder, say
        self.workers: dict[Program, Worker] = {}
        self.about: dict[Program, Row] = {}
        self.failed: dict[Program, tuple[Cell | None, str]] = {}

    def run(self, model: str) -> None:
        """All cells of a model; those whose rows are all there are left out."""
        programs = self.settings.programs(model)
        known = {_key(row) for row in self.result["rows"]}
        try:
            for cell in self.settings.cells():
                keys = {_key(_head(program, cell)) for program in programs}
                if keys <= known:
                    continue
                self.result["rows"] = [row for row in self.result["rows"] if _key(row) not in keys]
                for row in self._cell(programs, cell):
                    self.result["rows"].append(row)
                    self.result["exponents"] = exponents(self.result["rows"])
                    self.result["load"]["average_after"] = load_average()
                    _write(self.result, self.out)
                    self.say(row)
        finally:
            for worker in self.workers.values():
                worker.close()
            self.workers.clear()

    def _cell(self, programs: Sequence[Program], cell: Cell) -> Iterator[Row]:
        """Verify every program, let the sound ones take turns, and make a row of each."""
        rows = {program: _head(program, cell) for program in programs}
        runs: dict[Program, list[Row]] = {}
        others = {program: Others() for program in programs}
        for program in programs:
            with self._failing(program, cell, rows):
                rows[program] |= self._verified(program, cell)
                runs[program] = []
        for _ in range(self.settings.repeats):
            for program in list(runs):
                with self._failing(program, cell, rows, runs):
                    others[program].start()
                    runs[program].append(self.workers[program].ask("measure"))
                    others[program].stop(runs[program][-1]["cpu_seconds"])
        for program in list(runs) if self.settings.profile else []:
            with self._failing(program, cell, rows, runs):
                rows[program]["trace"] = self._traced(program, cell)
        for program, row in rows.items():
            if program in runs:
                load = {"average": load_average(), "others_cpu_share": others[program].share}
                row |= figures(runs[program], row, self._peaks(program)) | {"load": load}
            row.pop("weight_bytes", None)
            yield row

    @contextmanager
    def _failing(
        self, program: Program, cell: Cell, rows: dict[Program, Row], runs: dict[Program, list[Row]] | None = None
    ) -> Iterator[None]:
        """Inside, a failure of the program becomes its row's error."""
        try:
            yield
        except Failed as error:
            rows[program] = _head(program, cell) | {"error": str(error)}
            self.workers.pop(program, None)
            if error.costly:
                self.failed[program] = cell, str(error)
            if runs is not None:
                del runs[program]

    def _verified(self, program: Program, cell: Cell) -> Row:
        """What is known of a program at this size before it is timed."""
        past, why = self.failed.get(program, (None, ""))
        if program in self.failed and (past is None or _work(program, cell) >= _work(program, past)):
            raise Failed(why if past is None else f"not run, because at {past.views} views: {why}")
        if program not in self.workers:
            log = self.folder / f"{len(self.about)}-{len(self.failed)}.log"
            start = time.perf_counter()
            worker = Worker(program, self.settings.threads, log, self.settings.limit_s)
            try:
                self.about[program] = worker.ask("build")
                self.about[program]["start_seconds"] = round(time.perf_counter() - start, 3)
            except Failed as error:
                self.failed[program] = None, str(error)
                raise
            self.workers[program] = worker
        first = self.settings.dtypes[0] if program.kind != "sdpa" else program.dtype
        own, reference = self._kept(program, cell, program.dtype), self._kept(program, cell, first)
        is_dense = program.plan == DENSE and program.kind == "lean3r"
        given = reference if reference.exists() and not (is_dense and own == reference) else None
        if program.kind == "sdpa" and given is None:
            raise Failed("the dense model, which it must equal, failed")
        found = self.workers[program].ask("verify", cell, given, own if is_dense else None)
        about = {key: self.about[program][key] for key in KNOWN}
        worst = min(found["decibels_by_output"].values(), default=None)
        return about | found | {"decibels": worst}

    def _kept(self, program: Program, cell: Cell, dtype: str) -> Path:
        """Where the dense model's outputs are."""
        name = f"{program.model}-{program.device}-{dtype}-{cell.views}-{size_text(cell.size)}"
        return self.folder / f"{name.replace(':', '_')}.pt"

    def _traced(self, program: Program, cell: Cell) -> str:
        """The path of the program's trace, seen from the file."""
        folder = self.out.parent / f"{self.out.stem}_traces"
        folder.mkdir(exist_ok=True)
        words = f"{program}-{cell.views}-{size_text(cell.size)}"
        name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in words) + ".json.gz"
        self.workers[program].ask("trace", self.folder / name)
        with atomic_file(folder / name) as part:
            part.write_bytes((self.folder / name).read_bytes())
        return f"{folder.name}/{name}"

    def _peaks(self, program: Program) -> Mapping[str, float]:
        """What the device reaches in the number type that the program ran in, measured once."""
        dtype = self.about[program]["dtype"]
        name, known = f"{self.about[program]['device']} {dtype}", self.result["roofline"]
        if name not in known:
            plain = Program("", "", "lean3r", self.about[program]["device"], dtype)
            worker = Worker(plain, self.settings.threads, self.folder / "peaks.log", self.settings.limit_s)
            try:
                known[name] = worker.ask("peaks")
            except Failed:
                known[name] = {}
            worker.close()
        return known[name]


def _work(program: Program, cell: Cell) -> int:
    height, width = cell.pixels(program.model)
    return cell.views * height * width


def _head(program: Program, cell: Cell) -> Row:
    """A row without figures."""
    height, width = cell.pixels(program.model)
    empty = ("weights", "start_seconds", "seconds", "cpu_seconds", "views_per_s", "peak_mb", "activation_mb")
    return {
        "model": program.model,
        "plan": program.plan,
        "program": program.kind,
        "views": cell.views,
        "height": height,
        "width": width,
        "device": program.device,
        "dtype": program.dtype,
        "asked": {
            "size": size_text(cell.size),
            "device": program.device,
            "dtype": program.dtype,
            "whole": program.whole is not None,
        },
        **dict.fromkeys(empty),
        "parts": {},
        "flops": None,
        "roofline_share": None,
        "decibels": None,
        "decibels_by_output": {},
        "load": None,
        "trace": None,
        "error": None,
    }


def _key(row: Row) -> str:
    return json.dumps([row[name] for name in KEY], sort_keys=True)


def figures(runs: Sequence[Row], row: Row, peaks: Mapping[str, float]) -> Row:
    """The figures of a row from those of its runs. The share of the roofline is that of the seconds which the
    operations, or reading the weights once, would take at the measured peaks."""
    seconds, cpu = (spread([run[name] for run in runs]) for name in ("seconds", "cpu_seconds"))
    names = dict.fromkeys(name for run in runs for name in run["parts"])
    parts = {name: round(statistics.median(run["parts"].get(name, 0.0) for run in runs), 6) for name in names}
    share = None
    if row["flops"] and peaks:
        ideal = max(row["flops"] / peaks["flops_per_s"], row["weight_bytes"] / peaks["bytes_per_s"])
        share = round(ideal / seconds["median"], 4)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "views_per_s": round(row["views"] / seconds["median"], 3),
        "peak_mb": round(max(run["peak_mb"] for run in runs), 1),
        "activation_mb": round(max(run["activation_mb"] for run in runs), 1),
        "parts": parts,
        "roofline_share": share,
    }


def without_effect(rows: Iterable[Row]) -> list[str]:
    """A line for each plan that gave the dense model's results bit for bit, with the numbers of views: its seconds are
    those of dense attention."""
    views: dict[str, set[int]] = {}
    for row in rows:
        if row["program"] == "lean3r" and row["decibels"] == EQUAL_DB and row["plan"] != DENSE:
            views.setdefault(f"{row['model']} {row['plan']}", set()).add(row["views"])
    return [
        f"{name}: no effect at {', '.join(map(str, sorted(few)))} views, where it is the dense model"
        for name, few in views.items()
    ]


def spread(values: Sequence[float]) -> Row:
    """Median, extremes and all values, in seconds."""
    rounded = [round(value, 6) for value in values]
    middle = statistics.median(rounded)
    return {"median": round(middle, 6), "min": min(rounded), "max": max(rounded), "runs": rounded}
