"""File names: unique, short, harmless, whatever the pictures are called."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from lean3r.export.names import MAX_BYTES, safe_stems, unique_names

NAMES = st.lists(st.text(max_size=150) | st.sampled_from(["a.jpg", "A.JPG", "a.png", "a_2.jpg", "..", "/", "\udcff"]))


@settings(max_examples=150, deadline=None)
@given(NAMES)
def test_stems_are_unique_and_stay_in_their_folder(names):
    stems = safe_stems(names)
    assert len(stems) == len(names) == len({stem.casefold() for stem in stems})
    for stem in stems:
        assert 0 < len(stem.encode("utf-8")) <= MAX_BYTES
        assert Path(stem).name == stem and stem not in (".", "..") and stem.isprintable() == stem.isprintable()
        assert not any(ord(c) < 32 or c in '<>:"/\\|?*' for c in stem)


@settings(max_examples=100, deadline=None)
@given(NAMES)
def test_unique_names_change_only_repeats(names):
    unique = unique_names(names)
    assert len(set(unique)) == len(unique) == len(names)
    if names:
        assert unique[0] == names[0].encode("utf-8", "backslashreplace").decode()


def test_plain_names_stay_readable():
    assert safe_stems(["IMG_1.jpg", "sub/IMG_1.jpg", "my photo ü.heic", "x\ny.png", "  .jpg", "clip.mp4#12"]) == [
        "IMG_1", "IMG_1_2", "my photo ü", "x_y", "view_0004", "clip",
    ]  # fmt: skip


def test_windows_device_names_are_not_used_as_file_names() -> None:
    stems = safe_stems(["CON.jpg", "nul.tar.gz", "com1 .png", "LPT9.jpg", "console.jpg", "com10.jpg", "aux/b.jpg"])
    assert stems == ["_CON", "_nul.tar", "_com1", "_LPT9", "console", "com10", "b"]
