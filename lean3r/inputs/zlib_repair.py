"""If pycolmap was imported first: give the system's zlib its own functions back.

pycolmap's library holds a zlib of its own and exports it. If it is the first to load the system's libz.so.1 (as a
dependency), the dynamic linker resolves libz's internal calls in pycolmap first, and binds half of libz to the other
copy. The next compression - a PNG, an npz - mixes the two, and the process aborts. Here the slots of libz's function
table that point into pycolmap are set to the functions of the same name in libz. Linux, 64 bit (glibc).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator

LIBRARY = "libz.so.1"
FOREIGN = b"pycolmap"
# Tags of the dynamic section, and the request of dlinfo (elf.h, dlfcn.h).
DT_PLTRELSZ, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_JMPREL = 2, 6, 7, 8, 23
RTLD_DI_LINKMAP = 2


class _LinkMap(ctypes.Structure):
    """Where a library is loaded (its first three fields, link.h)."""

    _fields_ = (("base", ctypes.c_uint64), ("name", ctypes.c_char_p), ("dynamic", ctypes.c_uint64))


class _Symbolic(ctypes.Structure):
    """dladdr's description of an address (Dl_info)."""

    _fields_ = (("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p),
                ("at", ctypes.c_void_p))  # fmt: skip


class _Relocation(ctypes.Structure):
    """A slot that the linker fills: Elf64_Rela."""

    _fields_ = (("offset", ctypes.c_uint64), ("kind", ctypes.c_uint32), ("symbol", ctypes.c_uint32),
                ("addend", ctypes.c_int64))  # fmt: skip


class _Symbol(ctypes.Structure):
    """A name of the library, with its place where the library itself defines it: Elf64_Sym."""

    _fields_ = (("name", ctypes.c_uint32), ("info", ctypes.c_uint8), ("other", ctypes.c_uint8),
                ("section", ctypes.c_uint16), ("value", ctypes.c_uint64), ("size", ctypes.c_uint64))  # fmt: skip


def repair() -> int:
    """Repair the loaded libz; returns how many of its functions pointed into pycolmap (0: it was intact)."""
    try:
        library = ctypes.CDLL(LIBRARY, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return 0  # not loaded
    system = ctypes.CDLL(None)
    place = ctypes.POINTER(_LinkMap)()
    if system.dlinfo(ctypes.c_void_p(library._handle), RTLD_DI_LINKMAP, ctypes.byref(place)):
        return 0
    base, count = place.contents.base, 0
    for slot, address in _own_functions(base, place.contents.dynamic):
        symbol = _Symbolic()
        at = ctypes.c_uint64.from_address(slot)
        if system.dladdr(ctypes.c_void_p(at.value), ctypes.byref(symbol)) and FOREIGN in (symbol.file or b""):
            _make_writable(system, slot)
            at.value = address
            count += 1
    return count


def _own_functions(base: int, dynamic: int) -> Iterator[tuple[int, int]]:
    """(address of the slot, of the function) of every function that a library calls by its table and defines itself."""
    tags: dict[int, int] = {}
    while (tag := ctypes.c_uint64.from_address(dynamic).value) != 0:
        value = ctypes.c_uint64.from_address(dynamic + 8).value
        tags[tag] = value + base if tag in (DT_SYMTAB, DT_RELA, DT_JMPREL) and value < base else value
        dynamic += 16
    for start, size in ((DT_RELA, DT_RELASZ), (DT_JMPREL, DT_PLTRELSZ)):
        for offset in range(0, tags.get(size, 0), ctypes.sizeof(_Relocation)):
            slot = _Relocation.from_address(tags[start] + offset)
            symbol = _Symbol.from_address(tags[DT_SYMTAB] + slot.symbol * ctypes.sizeof(_Symbol))
            if slot.symbol and symbol.section:
                yield base + slot.offset, base + symbol.value


def _make_writable(system: ctypes.CDLL, slot: int) -> None:
    """Some systems protect the table. The page stays writable, since other data of the library may share it."""
    page = slot // mmap.PAGESIZE * mmap.PAGESIZE
    rights = mmap.PROT_READ | mmap.PROT_WRITE
    if system.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), rights):
        raise ImportError("pycolmap was imported first, and zlib cannot be repaired. Import lean3r before pycolmap.")
