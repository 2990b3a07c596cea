"""What a processor offers to the kernels. Kernels ask here and nowhere else.

`resolve("native")` is the best named target that this host runs; `describe` gives any of them, so that code for another
machine can be emitted and read here. A target is a table row: to add one is to add a row to `_ROWS`. Next: `emit.py`.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cache

from rlx.errors import OptionError

_AVX2 = ("sse4.2", "avx", "avx2", "fma", "f16c", "bmi", "bmi2", "popcnt", "lzcnt", "movbe")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx512vnni")
_AMX = (*_AVX512, "avx512bf16", "amx-tile", "amx-int8", "amx-bf16")
_NEON = ("neon", "fp-armv8", "dotprod")
_I8MM = (*_NEON, "i8mm", "bf16")
X86, ARM = "x86", "aarch64"
_TRIPLES = {X86: "x86_64-unknown-linux-gnu", ARM: "aarch64-unknown-linux-gnu"}


_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


@dataclass(frozen=True, slots=True)
class Target:
    """A named instruction set. `cpu` and `flags` are LLVM's words; `vector_bits` is the width kernels aim at."""

    name: str
    triple: str
    cpu: str
    flags: tuple[str, ...]
    vector_bits: int

    @property
    def features(self) -> str:
        """The flags as LLVM takes them."""
        return ",".join(f"+{flag}" for flag in self.flags)

    @property
    def key(self) -> str:
        """What the object cache goes by."""
        return f"{self.name}|{self.triple}|{self.cpu}|{self.features}"

    @property
    def is_x86(self) -> bool:
        """Whether it is an x86-64."""
        return self.triple.startswith("x86")

    @property
    def is_arm(self) -> bool:
        """Whether it is an AArch64."""
        return self.triple.startswith(("aarch64", "arm64"))

    @property
    def fma(self) -> bool:
        """Fused multiply-add; AArch64 always has it, and a library call per lane is no option."""
        return not self.is_x86 or "fma" in self.flags

    @property
    def half(self) -> bool:
        """Conversions between half and float32; AArch64 always has them."""
        return not self.is_x86 or "f16c" in self.flags

    @property
    def avx2(self) -> bool:
        """256-bit integer vectors."""
        return "avx2" in self.flags

    @property
    def vnni(self) -> bool:
        """Dot products of bytes in 512 bits."""
        return "avx512vnni" in self.flags

    @property
    def avx_vnni(self) -> bool:
        """Dot products of bytes in 256 bits."""
        return "avxvnni" in self.flags

    @property
    def amx(self) -> bool:
        """Products of tiles of bytes and of bfloat16."""
        return "amx-int8" in self.flags

    @property
    def bf16(self) -> bool:
        """Dot products of pairs of bfloat16 in 512 bits."""
        return "avx512bf16" in self.flags

    @property
    def dotprod(self) -> bool:
        """Dot products of bytes that have the same signedness, AArch64."""
        return "dotprod" in self.flags

    @property
    def i8mm(self) -> bool:
        """Dot products of unsigned with signed bytes, AArch64."""
        return "i8mm" in self.flags

    @property
    def mixed_bytes(self) -> bool:
        """Whether dot products take all unsigned bytes times signed ones; otherwise those below 128, or signed ones."""
        return self.vnni or self.avx_vnni or self.i8mm or not (self.avx2 or self.dotprod)

    @property
    def row_tiles(self) -> tuple[int, ...]:
        """Rows of the tiles of a product with 16 outputs, largest first, as many as there are registers for.

        16 registers of 256 bits and 32 of 128 hold four rows, 32 of 512 hold eight.
        """
        return (8, 4, 1) if self.vector_bits == 512 else (4, 1)


@dataclass(frozen=True, slots=True)
class _Row:
    """A named target: the flags it needs of a host and is compiled with; `own_cpu` tunes it for the host at hand.

    `extra` are flags that it is compiled with as well where the host has them.
    """

    name: str
    arch: str
    cpu: str
    flags: tuple[str, ...]
    vector_bits: int
    own_cpu: bool = False
    extra: tuple[str, ...] = ()


_ROWS = (
    _Row("amx", X86, "sapphirerapids", _AMX, 512),
    _Row("avx512", X86, "x86-64-v4", _AVX512, 512, own_cpu=True, extra=("avx512bf16",)),
    _Row("avxvnni", X86, "alderlake", (*_AVX2, "avxvnni"), 256),
    _Row("avx2", X86, "x86-64-v3", _AVX2, 256),
    _Row("i8mm", ARM, "generic", _I8MM, 128),
    _Row("apple", ARM, "apple-m1", _NEON, 128),
    _Row("neon", ARM, "generic", _NEON, 128),
)
"""Best first."""
_FIRST_APPLE = ("apple-m1", "apple-a14", "generic")
"""Apple's processors without i8mm; "generic" is one that LLVM does not know the name of."""
NAMES = ("native", *(row.name for row in _ROWS), "portable")


@dataclass(frozen=True, slots=True)
class Host:
    """What LLVM says of this machine."""

    triple: str
    cpu: str
    features: frozenset[str]

    @property
    def arch(self) -> str:
        """`X86`, `ARM`, or nothing that a named target is for."""
        starts = {X86: "x86_64", ARM: ("aarch64", "arm64")}
        return next((arch for arch, start in starts.items() if self.triple.startswith(start)), "")

    @property
    def is_apple(self) -> bool:
        """Whether it is one of Apple's, of whose features LLVM says nothing: they follow from the processor's name."""
        return self.arch == ARM and "apple" in self.triple

    def has(self, flags: tuple[str, ...]) -> bool:
        """Whether the processor has all of LLVM's features `flags`."""
        if self.is_apple:
            return set(_NEON if self.cpu in _FIRST_APPLE else _I8MM).issuperset(flags)
        return self.features.issuperset(flags)


@cache
def host() -> Host:
    """The machine this process runs on."""
    from rlx.backends.cpu.llvm import binding

    library = binding()
    flags: dict[str, bool] = library.get_host_cpu_features()
    features = frozenset(name for name, on in flags.items() if on)
    return Host(library.get_process_triple(), library.get_host_cpu_name(), features)


@cache
def tiles_permitted() -> bool:
    """Ask the system for the tiles, once and for all threads of the process; whether it gives them.

    Source: Linux, Documentation/arch/x86/xstate.rst.
    """
    if not sys.platform.startswith("linux"):
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0


def available(machine: Host | None = None) -> tuple[str, ...]:
    """The named targets whose instructions a machine (this host) has, best first (without `native`)."""
    found = machine or host()
    rows = [row for row in _ROWS if row.arch == found.arch and found.has(row.flags)]
    names = [row.name for row in rows if row.name != "apple" or found.is_apple]
    if machine is None and "amx" in names and not tiles_permitted():
        names.remove("amx")
    return (*names, "portable")


def describe(name: str, machine: Host | None = None) -> Target:
    """A named target other than `native`, whether or not a machine (this host) runs it.

    Its triple is the machine's where the processor is of the same kind, and Linux's otherwise.
    """
    machine = machine or host()
    row = next((row for row in _ROWS if row.name == name), None)
    if row is None:
        # baseline x86-64 has no fused multiply-add; AArch64 has it always
        return Target("portable", machine.triple, "x86-64" if machine.arch == X86 else "generic", (), 128)
    same = machine.arch == row.arch
    cpu = machine.cpu if row.own_cpu and same and machine.has(row.flags) else row.cpu
    extra = tuple(flag for flag in row.extra if same and machine.has((flag,)))
    flags = (*row.flags, *extra)
    return Target(row.name, machine.triple if same else _TRIPLES[row.arch], cpu, flags, row.vector_bits)


@cache
def resolve(name: str) -> Target:
    """The target called `name`; `native` is the best this host runs.

    Raises:
        OptionError: there is no such target, or this host cannot run it.
    """
    if name not in NAMES:
        raise OptionError("unknown target", found=repr(name), expected=", ".join(NAMES))
    names = available()
    if name == "native":
        name = names[0]
    if name not in names:
        raise OptionError(f"this machine cannot run target {name}", expected=", ".join(("native", *names)))
    return describe(name)


def runs_here(target: Target) -> bool:
    """Whether a target is for this kind of processor, so that LLVM's native code generator makes its code."""
    return (target.is_x86 and host().arch == X86) or (target.is_arm and host().arch == ARM)
