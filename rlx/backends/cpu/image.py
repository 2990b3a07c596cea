"""Object code to callable addresses without LLVM: a linker for the objects that this backend makes.

In: an ELF object file for x86-64 whose only relocations are between its own sections. Out: its sections in one mapping
that may be executed, and the addresses of its functions. Loading LLVM and linking with it takes 50 ms of every start;
this takes under one. What it does not know (another format, a call to a library) raises `NotLinkable`, and
`native_code.py` links with LLVM instead. Sources: the ELF-64 object file format, and the System V ABI for x86-64, table
4.9, for what each relocation means.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_HEADER = struct.Struct("<4s5B7xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")

_CLASS_64, _LITTLE_ENDIAN, _RELOCATABLE, _X86_64 = 2, 1, 1, 62
_PROGBITS, _SYMTAB, _RELA, _UNWIND = 1, 2, 4, 0x70000001
_WRITE, _ALLOC = 1, 2
_PC32, _PLT32, _PC64, _GOTOFF64, _GOTPC64, _GOTPC32 = 2, 4, 24, 25, 29, 26
_TABLE = "_GLOBAL_OFFSET_TABLE_"
_MAX_IMAGE = 256 << 20
_MAX_ALIGNMENT = 4096


class NotLinkable(Exception):
    """The object needs a real linker; the text says why."""


@dataclass(frozen=True, slots=True)
class _Section:
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    name: int


class CodeImage:
    """Linked code in memory, for as long as this object lives.

    Attributes:
        symbols: address of every function that was asked for.
    """

    def __init__(self, code: bytes, symbols: Sequence[str]) -> None:
        """Link `code` and map it.

        Raises:
            NotLinkable: the object is of another kind, or the system does not let memory be executed.
        """
        if sys.platform == "win32" or platform.machine().lower() not in ("x86_64", "amd64"):
            raise NotLinkable("only x86-64 objects on a system with mprotect")
        image, offsets = linked(code, symbols)
        self._memory = mmap.mmap(-1, max(1, len(image)))
        self._memory[: len(image)] = bytes(image)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        _make_executable(base, len(self._memory))
        self.symbols = {name: base + offset for name, offset in offsets.items()}


def linked(code: bytes, symbols: Sequence[str]) -> tuple[bytearray, dict[str, int]]:
    """The sections of an object with every relocation applied, wherever the result is loaded, and where symbols are.

    Raises:
        NotLinkable: the object has something that this linker does not know.
    """
    try:
        return _Linker(code).run(symbols)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise NotLinkable(f"the object is damaged: {error}") from None


class _Linker:
    def __init__(self, code: bytes) -> None:
        self.code = code
        fields = _HEADER.unpack_from(code)
        magic, kind, order, machine, file_type = fields[0], fields[1], fields[2], fields[7], fields[6]
        wanted = (b"\x7fELF", _CLASS_64, _LITTLE_ENDIAN, _RELOCATABLE, _X86_64)
        if (magic, kind, order, file_type, machine) != wanted:
            raise NotLinkable("not a relocatable ELF object for x86-64")
        table, size, count = fields[11], fields[16], fields[17]
        if size != _SECTION.size or table + size * count > len(code):
            raise NotLinkable("the table of sections is not whole")
        self.sections = [self._section(table + size * i) for i in range(count)]
        self.places: dict[int, int] = {}

    def _section(self, at: int) -> _Section:
        name, kind, flags, _, offset, size, link, info, alignment, _ = _SECTION.unpack_from(self.code, at)
        if kind in (_PROGBITS, _SYMTAB, _RELA, _UNWIND) and offset + size > len(self.code):
            raise NotLinkable("a section runs past the end of the object")
        return _Section(kind, flags, offset, size, link, info, max(1, alignment), name)

    def run(self, symbols: Sequence[str]) -> tuple[bytearray, dict[str, int]]:
        """See `linked`."""
        image = self._laid_out()
        table = next((section for section in self.sections if section.kind == _SYMTAB), None)
        if table is None:
            raise NotLinkable("the object has no symbols")
        for section in self.sections:
            if section.kind == _RELA and section.info in self.places:
                self._relocate(image, section, table)
        offsets = self._addresses(table)
        if missing := [name for name in symbols if name not in offsets]:
            raise NotLinkable(f"the object does not define {missing[0]}")
        return image, {name: offsets[name] for name in symbols}

    def _laid_out(self) -> bytearray:
        """The sections that are needed to run, one after the other. Unwinding tables are not: nothing is thrown."""
        image = bytearray()
        for index, section in enumerate(self.sections):
            if not section.flags & _ALLOC or section.kind == _UNWIND or not section.size:
                continue
            if section.kind != _PROGBITS or section.flags & _WRITE or section.alignment > _MAX_ALIGNMENT:
                raise NotLinkable("a section is not plain code or constants")
            image += bytes(-len(image) % section.alignment)
            self.places[index] = len(image)
            image += self.code[section.offset : section.offset + section.size]
            if len(image) > _MAX_IMAGE:
                raise NotLinkable("the code is too large")
        return image

    def _relocate(self, image: bytearray, section: _Section, table: _Section) -> None:
        """S, A, P and GOT are the ABI's names: symbol, addend, place, and a base that may be anywhere: the start."""
        begin = self.places[section.info]
        end = begin + self.sections[section.info].size
        relocations = self.code[section.offset : section.offset + section.size]
        for offset, info, addend in _RELOCATION.iter_unpack(relocations):
            place, kind = begin + offset, info & 0xFFFFFFFF
            # the table itself is the base, which is where the image starts
            symbol = 0 if kind in (_GOTPC32, _GOTPC64) else self._symbol(table, info >> 32)
            if kind == _GOTOFF64:
                value, width = symbol + addend, 8
            elif kind in (_PC64, _GOTPC64):
                value, width = symbol + addend - place, 8
            elif kind in (_PC32, _PLT32, _GOTPC32):
                value, width = symbol + addend - place, 4
            else:
                raise NotLinkable(f"a relocation of kind {kind}")
            if not begin <= place <= end - width:
                raise NotLinkable("a relocation lies outside of its section")
            try:
                image[place : place + width] = value.to_bytes(width, "little", signed=True)
            except OverflowError:
                raise NotLinkable("a relocation does not reach its symbol") from None

    def _symbol(self, table: _Section, index: int) -> int:
        if not 0 <= index < table.size // _SYMBOL.size:
            raise NotLinkable("a relocation names no symbol")
        name, _, _, section, value, _ = _SYMBOL.unpack_from(self.code, table.offset + index * _SYMBOL.size)
        if section not in self.places:
            raise NotLinkable(f"the object needs {self._name(table, name) or 'a symbol of another'}")
        if value > self._size(section):
            raise NotLinkable("a symbol lies outside of its section")
        return self.places[section] + value

    def _size(self, section: int) -> int:
        return self.sections[section].size

    def _addresses(self, table: _Section) -> dict[str, int]:
        entries = _SYMBOL.iter_unpack(self.code[table.offset : table.offset + table.size // 24 * 24])
        found: dict[str, int] = {}
        for name, _, _, section, value, _ in entries:
            if name and section in self.places and value <= self._size(section):
                found[self._name(table, name)] = self.places[section] + value
        return found

    def _name(self, table: _Section, offset: int) -> str:
        strings = self.sections[table.link]
        start = strings.offset + offset
        end = self.code.find(b"\0", start, strings.offset + strings.size)
        return self.code[start:end].decode() if end >= 0 else ""


def _make_executable(address: int, nbytes: int) -> None:
    """Read and execute, no longer write.

    Raises:
        NotLinkable: the system refuses.
    """
    try:
        protect: Any = ctypes.CDLL(None, use_errno=True).mprotect
    except (OSError, AttributeError) as error:
        raise NotLinkable(f"there is no mprotect: {error}") from None
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if protect(address, nbytes, mmap.PROT_READ | mmap.PROT_EXEC):
        raise NotLinkable(f"memory may not be executed (error {ctypes.get_errno()})")
