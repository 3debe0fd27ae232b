"""A result folder appears whole or not at all, and an old one is never lost."""

from __future__ import annotations

import errno
import os

import pytest

from export.scene import make_scene
from lean3r.errors import UsageError
from lean3r.export import atomic_folder, export, ply


def fill(out, text, **options):
    with atomic_folder(out, **options) as folder:
        (folder / "manifest.json").write_text(text)
        (folder / "sub").mkdir()


def only_child(folder, name):
    assert [path.name for path in folder.iterdir()] == [name]


def test_new_empty_and_nested_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "a" / "b c" / "ö"):
        fill(out, "1")
        only_child(out.parent, out.name) if out.name == "ö" else None
        assert (out / "manifest.json").read_text() == "1"
    assert os.stat(tmp_path / "empty").st_mode & 0o777 == os.stat(tmp_path / "a").st_mode & 0o777


def test_an_existing_result_is_refused_before_any_work(tmp_path):
    out = tmp_path / "out"
    fill(out, "old")
    refusal = r"out/ exists and is not empty\. Use --overwrite, or another -o\."
    with pytest.raises(UsageError, match=refusal), atomic_folder(out):
        pytest.fail("the block must not run")
    fill(out, "new", overwrite=True)
    assert (out / "manifest.json").read_text() == "new"
    only_child(tmp_path, "out")


def test_overwrite_never_deletes_what_is_not_a_result(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"precious")
    with pytest.raises(UsageError, match="not an earlier result"), atomic_folder(photos, overwrite=True):
        pytest.fail("the block must not run")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UsageError, match="is a file"), atomic_folder(file, overwrite=True):
        pytest.fail("the block must not run")
    with pytest.raises(UsageError, match="cannot write"), atomic_folder(file / "out"):
        pytest.fail("the block must not run")
    assert (photos / "a.jpg").read_bytes() == b"precious"


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

    # Once while the files are written, once at the very last step.
    with pytest.raises(seen), monkeypatch.context() as patch:
        patch.setattr(ply, "write", fail)
        export(make_scene(1, height=24, width=32), out, ["cameras", "ply"], overwrite=True)
    with pytest.raises(seen), monkeypatch.context() as patch:
        rename = os.rename
        patch.setattr(os, "rename", lambda a, b: fail() if str(a).endswith(".part") else rename(a, b))
        fill(out, "new", overwrite=True)
    assert (out / "manifest.json").read_text() == "old"
    only_child(tmp_path, "out")


def test_a_symbolic_link_stays_a_link(tmp_path):
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real", target_is_directory=True)
    fill(tmp_path / "link", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "manifest.json").read_text() == "new"
