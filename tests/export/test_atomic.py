"""A result folder appears whole or not at all, and nothing of the user's is ever lost."""

from __future__ import annotations

import errno
import inspect
import json
import os
import shutil
import subprocess
import sys

import pytest

from export.scene import make_scene
from lean3r.errors import UsageError
from lean3r.export import atomic, atomic_folder, export, placing, ply

HARD = "import os\ndef die(*_, **__):\n    os._exit(9)\n"
PROGRAM = """
import json
from lean3r.export import atomic, atomic_folder, placing
{patch}
{fill}
fill({out!r}, "new", overwrite=True)
"""
# Where a run is killed: while it writes, before the folders change places, after that, file by file, between two moves.
MOMENTS = {
    "writing": "atomic._place = die",
    "decided": "placing._exchange = die",
    "exchanged": "placing._remove_old = die",
    "moving files": "atomic._is_here = lambda _: True\nold = placing._move\n"
    "placing._move = lambda a, b: die() if b.name == 'manifest.json' else old(a, b)",
    "between two moves": "placing._exchange = lambda a, b: False\nold = os.rename\n"
    "os.rename = lambda a, b: die() if str(a).endswith('new') else old(a, b)",
}


def fill(out, text, **options):
    """A result of three files, like those of all commands."""
    with atomic_folder(out, **options) as folder:
        (folder / "sub").mkdir()
        for name in ("a.txt", "sub/b.txt", f"only-{text}.txt"):
            (folder / name).write_text(text)
        listed = ["a.txt", "sub/b.txt", f"only-{text}.txt", "manifest.json"]
        (folder / "manifest.json").write_text(json.dumps({"lean3r": "0", "layout_version": 1, "files": listed}))


def holds(out, text, *more):
    """Assert that a folder is the result `fill(out, text)`, with more files besides."""
    expected = {"a.txt", "sub/b.txt", f"only-{text}.txt", "manifest.json", *more}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == expected
    assert (out / "a.txt").read_text() == (out / "sub" / "b.txt").read_text() == text


def only_child(folder, name):
    assert [path.name for path in folder.iterdir()] == [name]


def test_new_empty_and_nested_folders(tmp_path):
    (tmp_path / "empty").mkdir(mode=0o700)
    for out in (tmp_path / "empty", tmp_path / "a" / "b c" / "ö", tmp_path / ("x" * 255)):
        fill(out, "1")
        holds(out, "1")
        assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]
    assert os.stat(tmp_path / "empty").st_mode & 0o777 == 0o700, "who kept it closed keeps it closed"


def test_an_existing_result_is_refused_before_any_work(tmp_path):
    out = tmp_path / "out"
    fill(out, "old")
    refusal = r"out/ exists and is not empty\. Use --overwrite \(overwrite=True\), or another folder \(-o\)\."
    with pytest.raises(UsageError, match=refusal), atomic_folder(out):
        pytest.fail("the block must not run")
    out.chmod(0o750)
    fill(out, "new", overwrite=True)
    holds(out, "new")
    assert os.stat(out).st_mode & 0o777 == 0o750
    only_child(tmp_path, "out")


@pytest.mark.parametrize(
    "manifest",
    [
        None,
        "{}",
        '{"name": "a web app", "files": ["manifest.json", "a.jpg"]}',
        '{"lean3r": "0.1", "layout_version": 1, "files": ["a.jpg"]}',
        '{"lean3r": "0.1", "layout_version": 1, "files": "manifest.json"}',
        "[" * 100_000,
    ],
)
def test_overwrite_never_touches_what_is_not_a_result(tmp_path, manifest):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"precious")
    if manifest is not None:
        (photos / "manifest.json").write_text(manifest)
    with pytest.raises(UsageError, match="not an earlier result"), atomic_folder(photos, overwrite=True):
        pytest.fail("the block must not run")
    assert (photos / "a.jpg").read_bytes() == b"precious"
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UsageError, match="is a file"), atomic_folder(file, overwrite=True):
        pytest.fail("the block must not run")
    with pytest.raises(UsageError, match="cannot write"), atomic_folder(file / "out"):
        pytest.fail("the block must not run")


def test_only_listed_files_give_way(tmp_path, monkeypatch):
    out, elsewhere = tmp_path / "out", tmp_path / "photos"
    elsewhere.mkdir()
    (elsewhere / "b.txt").write_text("mine")
    for where in (tmp_path, out):  # from outside, and standing in it
        fill(out, "old", overwrite=True)
        monkeypatch.chdir(where)
        (out / "notes.txt").write_text("mine")
        (out / "sub" / "c.txt").write_text("mine")
        (out / "mine").mkdir(exist_ok=True)
        (out / "link").symlink_to(elsewhere)
        listed = json.loads((out / "manifest.json").read_text())
        listed["files"] += ["../photos/b.txt", "link/b.txt", str(elsewhere / "b.txt"), "mine", "gone.txt"]
        (out / "manifest.json").write_text(json.dumps(listed))
        inode = out.stat().st_ino
        fill(out, "new", overwrite=True)
        holds(out, "new", "notes.txt", "sub/c.txt")
        assert (out / "link").is_symlink() and (out / "mine").is_dir() and (elsewhere / "b.txt").read_text() == "mine"
        assert (out.stat().st_ino == inode) == (where == out), "the folder that one stands in stays"
        (out / "link").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_what_other_programs_keep_in_the_folders_of_a_replaced_result_is_named(tmp_path, caplog):
    """Trainers store their own copies of points and pictures there, and would take those of the older result."""
    fill(tmp_path / "out", "old")
    for name in ("sub/0/points.ply", "sub_4_png/a.png", "mine/notes.txt", "notes.txt", "sub/.DS_Store"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("theirs")
    fill(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out" / "sub" / "0" / "points.ply").read_text() == "theirs"
    (warning,) = caplog.messages
    assert "sub/0/points.ply, sub_4_png/a.png" in warning and "notes.txt" not in warning and ".DS" not in warning
    caplog.clear()
    shutil.rmtree(tmp_path / "out" / "sub" / "0")
    shutil.rmtree(tmp_path / "out" / "sub_4_png")
    fill(tmp_path / "out", "newer", overwrite=True)
    assert not caplog.messages


def test_only_folders_of_the_result_are_searched_for_what_others_keep(tmp_path, monkeypatch):
    """Beside them may be anything, such as a mounted disk."""
    fill(tmp_path / "out", "old")
    (tmp_path / "out" / "disk").mkdir()
    searched, search = [], placing.files_of
    monkeypatch.setattr(placing, "files_of", lambda folder: searched.append(folder) or search(folder))
    atomic._warn_of_strangers(tmp_path / "new", tmp_path / "out", ["sub/b.txt"], "out")
    assert searched == [tmp_path / "new", tmp_path / "out" / "sub"]


def test_what_appears_during_the_run_stays(tmp_path):
    out = tmp_path / "out"
    with atomic_folder(out) as folder:
        (folder / "a.txt").write_text("result")
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    assert (out / "a.txt").read_text() == "result" and (out / "notes.txt").read_text() == "mine"

    other = tmp_path / "other"
    with (
        pytest.raises(UsageError, match=r"another program created a\.txt in .*other-2 instead"),
        atomic_folder(other) as folder,
    ):
        (folder / "a.txt").write_text("result")
        other.mkdir()
        (other / "a.txt").write_text("mine")
    assert (other / "a.txt").read_text() == "mine" and (tmp_path / "other-2" / "a.txt").read_text() == "result"

    third = tmp_path / "third"
    with pytest.raises(UsageError, match="third-2 instead"), atomic_folder(third) as folder:
        (folder / "x.txt").write_text("result")
        shutil.copytree(out, third)
        fill(tmp_path / "copied", "foreign")
        shutil.copytree(tmp_path / "copied", third, dirs_exist_ok=True)
    holds(third, "foreign", "notes.txt")


def test_what_appears_at_the_last_moment_stays(tmp_path, monkeypatch):
    out = tmp_path / "out"
    fill(out, "old")
    exchange = placing._exchange

    def late(one, other):
        (other / "late.txt").write_text("mine")
        (other / "only-new.txt").write_text("mine, too")
        return exchange(one, other)

    monkeypatch.setattr(placing, "_exchange", late)
    fill(out, "new", overwrite=True)
    holds(out, "new", "late.txt", "only-new-2.txt")
    assert (out / "only-new-2.txt").read_text() == "mine, too"
    only_child(tmp_path, "out")


def test_inputs_within_an_older_result_are_refused(tmp_path, monkeypatch):
    out = tmp_path / "out"
    fill(out, "old")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").symlink_to(out / "a.txt")
    monkeypatch.chdir(tmp_path)
    for given in (out, out / "sub", "out/*.txt", "photos", out / "sub" / "b.txt"):
        refused = pytest.raises(UsageError, match="which --overwrite would replace")
        with refused, atomic_folder(out, overwrite=True, inputs=[tmp_path / "other", given]):
            pytest.fail("the block must not run")
    fill(out, "new", overwrite=True, inputs=[tmp_path, "hf:some/where"])
    holds(out, "new")


@pytest.mark.parametrize("before", [None, "old"])
def test_a_second_run_is_refused(tmp_path, before):
    out = tmp_path / "out"
    if before:
        fill(out, before)
    told = pytest.raises(UsageError, match=rf"another run \(process {os.getpid()}\) is writing to")
    with told, atomic_folder(out, overwrite=True):
        fill(tmp_path / "beside", "1")
        fill(out, "new", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside", *(["out"] if before else [])]
    fill(out, "new", overwrite=True)
    holds(out, "new")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("next_run", ["out", "other"])
def test_a_killed_run_loses_nothing_and_the_next_one_tidies_up(tmp_path, moment, next_run):
    out = tmp_path / "out"
    fill(out, "old")
    (out / "notes.txt").write_text("mine")
    patch = HARD + MOMENTS[moment]
    program = PROGRAM.format(fill=inspect.getsource(fill), patch=patch, out=str(out))
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path).returncode == 9
    if moment != "between two moves":
        assert (out / "notes.txt").read_text() == "mine"
    if moment in ("writing", "decided", "exchanged"):
        now = "new" if moment == "exchanged" else "old"
        holds(out, now, "notes.txt")
    fill(tmp_path / "other", "x")
    expected = "new" if moment in ("exchanged", "moving files") else "old"
    holds(out, expected, "notes.txt")
    if next_run == "out":
        fill(out, "third", overwrite=True)
        holds(out, "third", "notes.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_a_living_run_is_left_alone(tmp_path):
    with atomic_folder(tmp_path / "one") as folder:
        (folder / "a.txt").write_text("1")
        fill(tmp_path / "two", "2")
        assert (folder / "a.txt").read_text() == "1"
    only = {path.name for path in tmp_path.iterdir()}
    assert only == {"one", "two"} and (tmp_path / "one" / "a.txt").read_text() == "1"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts need root")
@pytest.mark.parametrize("closed", [False, True], ids=["", "read-only around it"])
@pytest.mark.parametrize("same_disk", [False, True], ids=["disk of its own", "bound folder"])
def test_a_mount_point(tmp_path, closed, same_disk):
    around, source = tmp_path / "around", tmp_path / "source"
    out = around / "out"
    for folder in (around, source):
        folder.mkdir()

    def mount(*arguments):
        if subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode:
            pytest.skip("no mounts here")

    mount("-t", "tmpfs", "none", around)
    try:
        out.mkdir()
        if same_disk:
            (around / "source").mkdir()
            source = around / "source"
        mount("--bind", source, out)
        if closed:
            mount("-o", "remount,bind,ro", around)
        (out / "lost+found").mkdir()
        fill(out, "old")
        (out / "notes.txt").write_text("mine")
        holds(source, "old", "notes.txt")
        with pytest.raises(UsageError, match="not empty"):
            fill(out, "new")
        fill(out, "new", overwrite=True)
        holds(source, "new", "notes.txt")
        with pytest.raises(UsageError, match="another run"), atomic_folder(out, overwrite=True):
            fill(out, "x", overwrite=True)
        holds(source, "new", "notes.txt")
        assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["lost+found", "sub"]
        assert all(p.name in ("out", "source") for p in around.iterdir())
    finally:
        subprocess.run(["umount", out], capture_output=True)
        subprocess.run(["umount", around], capture_output=True)


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UsageError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.EIO, "broken"), OSError),
        (ValueError("bug"), ValueError),
    ],
    ids=["full disk", "ctrl-c", "i/o", "bug"],
)
def test_a_failure_leaves_the_old_result_and_nothing_else(tmp_path, monkeypatch, raised, seen):
    out = tmp_path / "out"
    fill(out, "old")

    def fail(*_):
        raise raised

    # Once while the files are written, then at the very last step: in one move, and in two.
    with pytest.raises(seen), monkeypatch.context() as patch:
        patch.setattr(ply, "write", fail)
        export(make_scene(1, height=24, width=32), out, ["cameras", "ply"], overwrite=True)
    with pytest.raises(seen), monkeypatch.context() as patch:
        patch.setattr(placing, "_exchange", fail)
        fill(out, "new", overwrite=True)
    with pytest.raises(seen), monkeypatch.context() as patch:
        rename = os.rename
        patch.setattr(placing, "_exchange", lambda *_: False)
        patch.setattr(os, "rename", lambda a, b: fail() if str(a).endswith(placing.NEW) else rename(a, b))
        fill(out, "new", overwrite=True)
    holds(out, "old")
    only_child(tmp_path, "out")


def test_a_folder_that_cannot_be_moved_is_filled_file_by_file(tmp_path, monkeypatch):
    out = tmp_path / "out"
    fill(out, "old")
    (out / "notes.txt").write_text("mine")

    def refuse(*_):
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(placing, "_exchange", refuse)
    fill(out, "new", overwrite=True)
    holds(out, "new", "notes.txt")
    only_child(tmp_path, "out")


def test_a_symbolic_link_stays_a_link(tmp_path):
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real", target_is_directory=True)
    fill(tmp_path / "link", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    holds(tmp_path / "real", "new")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match=r"loop .*Use another folder"):
        fill(tmp_path / "loop", "new")


def test_results_of_all_commands_are_known_by_their_manifest(tmp_path):
    from lean3r.export.manifest import write_short

    out = export(make_scene(1, height=24, width=32), tmp_path / "out", ["cameras"])
    assert atomic.result_files(out) == {path.name for path in out.iterdir()}
    (tmp_path / "scan.json").write_text("{}")
    write_short(tmp_path)
    assert atomic.result_files(tmp_path) >= {"scan.json", "manifest.json"}
