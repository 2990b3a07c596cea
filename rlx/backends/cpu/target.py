"""What a processor offers to the kernels. Kernels ask here and nowhere else.

`resolve("native")` describes the host; `avx512`, `avx2` and `portable` name lesser targets, so that their code can be
emitted and, where the host has the instructions, run. Next: `emit.py`.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache

from rlx.errors import OptionError

_AVX2 = ("sse4.2", "avx", "avx2", "fma", "f16c", "bmi", "bmi2", "popcnt", "lzcnt", "movbe")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx512vnni")
NAMES = ("native", "avx512", "avx2", "portable")


@dataclass(frozen=True, slots=True)
class Target:
    """A named instruction set. `cpu` and `features` are LLVM's words; `vector_bits` is the width kernels aim at."""

    name: str
    triple: str
    cpu: str
    features: str
    vector_bits: int
    fma: bool
    f16c: bool
    vnni: bool
    avx2: bool

    @property
    def key(self) -> str:
        """What the object cache goes by."""
        return f"{self.name}|{self.triple}|{self.cpu}|{self.features}"


@dataclass(frozen=True, slots=True)
class Host:
    """What LLVM says of this machine."""

    triple: str
    cpu: str
    features: frozenset[str]


@cache
def host() -> Host:
    """The machine this process runs on."""
    from rlx.backends.cpu.llvm import binding

    library = binding()
    flags: dict[str, bool] = library.get_host_cpu_features()
    features = frozenset(name for name, on in flags.items() if on)
    return Host(library.get_process_triple(), library.get_host_cpu_name(), features)


def is_x86() -> bool:
    """Whether this machine is x86-64."""
    return platform.machine().lower() in ("x86_64", "amd64")


def available() -> tuple[str, ...]:
    """The named targets whose instructions this host has, best first (without `native`)."""
    names: list[str] = []
    if is_x86():
        names += [name for name, needs in (("avx512", _AVX512), ("avx2", _AVX2)) if host().features.issuperset(needs)]
    return (*names, "portable")


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
    triple = host().triple
    if name == "portable":
        x86 = is_x86()
        # AArch64 always has fused multiply-add; baseline x86-64 has not, and a library call per lane is no option
        return Target(name, triple, "x86-64" if x86 else "generic", "", 128, not x86, False, False, False)
    wide = name == "avx512"
    features = ",".join(f"+{feature}" for feature in (_AVX512 if wide else _AVX2))
    cpu = host().cpu if wide else "x86-64-v3"
    return Target(name, triple, cpu, features, 512 if wide else 256, True, True, wide, True)
