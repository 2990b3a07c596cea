"""A small typed emitter over llvmlite, so that a kernel reads like its algorithm.

`Val` wraps an SSA value with operators (lane by lane for vectors). `Emit` has loops and conditions as context managers,
mutable variables, loads and stores, and the vector primitives whose form depends on the target (`fma`, `dot4` of
`dot.py`). Vectors of 16 lanes are used everywhere; LLVM splits them where registers are narrower. Next: `kernels/`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from rlx.backends.cpu.llvm import ir
from rlx.backends.cpu.target import Target
from rlx.errors import CompileError

LANES = 16
F32, F64, I64, I32, I16, I8, I1 = (
    ir.FloatType(),
    ir.DoubleType(),
    ir.IntType(64),
    ir.IntType(32),
    ir.IntType(16),
    ir.IntType(8),
    ir.IntType(1),
)
F16 = ir.HalfType()


class _BrainFloat(ir.Type):
    """LLVM's `bfloat`, which llvmlite has no class for; only casts and intrinsics use it."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BrainFloat)

    def __hash__(self) -> int:
        return hash(_BrainFloat)


BF16 = _BrainFloat()
PTR = ir.PointerType()


def vec(element: Any, lanes: int = LANES) -> Any:
    """The vector type of `lanes` elements; the element type itself for one lane."""
    return element if lanes == 1 else ir.VectorType(element, lanes)


VF, VI = vec(F32), vec(I32)


@dataclass(frozen=True, slots=True)
class Val:
    """An SSA value with operators. Python numbers on the other side become constants of the same type."""

    e: Emit
    v: Any

    @property
    def type(self) -> Any:
        """The LLVM type."""
        return self.v.type

    @property
    def element(self) -> Any:
        """The type of a lane."""
        return self.type.element if isinstance(self.type, ir.VectorType) else self.type

    @property
    def is_float(self) -> bool:
        """Whether lanes are floating point."""
        return isinstance(self.element, (ir.FloatType, ir.DoubleType, ir.HalfType))

    def _arith(self, other: Val | float, on_float: str, on_int: str) -> Val:
        right = self.e.like(other, self)
        return Val(self.e, getattr(self.e.b, on_float if self.is_float else on_int)(self.v, right.v))

    def __add__(self, other: Val | float) -> Val:
        return self._arith(other, "fadd", "add")

    def __sub__(self, other: Val | float) -> Val:
        return self._arith(other, "fsub", "sub")

    def __mul__(self, other: Val | float) -> Val:
        return self._arith(other, "fmul", "mul")

    def __truediv__(self, other: Val | float) -> Val:
        return self._arith(other, "fdiv", "sdiv")

    def __floordiv__(self, other: Val | int) -> Val:
        return self._arith(other, "fdiv", "sdiv")

    def __mod__(self, other: Val | int) -> Val:
        return self._arith(other, "frem", "srem")

    def __and__(self, other: Val | int) -> Val:
        return self._arith(other, "and_", "and_")

    def __or__(self, other: Val | int) -> Val:
        return self._arith(other, "or_", "or_")

    def __xor__(self, other: Val | int) -> Val:
        return self._arith(other, "xor", "xor")

    def __lshift__(self, other: Val | int) -> Val:
        return self._arith(other, "shl", "shl")

    def __rshift__(self, other: Val | int) -> Val:
        """A logical shift; `shift_right_signed` keeps the sign."""
        return self._arith(other, "lshr", "lshr")

    def shift_right_signed(self, other: Val | int) -> Val:
        """An arithmetic shift."""
        return self._arith(other, "ashr", "ashr")

    def __neg__(self) -> Val:
        return Val(self.e, self.e.b.fneg(self.v)) if self.is_float else self.e.like(0, self) - self

    def _compare(self, operator: str, other: Val | float) -> Val:
        right, b = self.e.like(other, self), self.e.b
        compare = b.fcmp_ordered if self.is_float else b.icmp_signed
        return Val(self.e, compare(operator, self.v, right.v))

    def __lt__(self, other: Val | float) -> Val:
        return self._compare("<", other)

    def __le__(self, other: Val | float) -> Val:
        return self._compare("<=", other)

    def __gt__(self, other: Val | float) -> Val:
        return self._compare(">", other)

    def __ge__(self, other: Val | float) -> Val:
        return self._compare(">=", other)

    def equals(self, other: Val | float) -> Val:
        """Lane-wise equality (`==` is kept for Python's identity)."""
        return self._compare("==", other)

    def bitcast(self, type_: Any) -> Val:
        """The same bits under another type."""
        return self if self.type == type_ else Val(self.e, self.e.b.bitcast(self.v, type_))

    def _convert(self, method: str, element: Any) -> Val:
        lanes = self.type.count if isinstance(self.type, ir.VectorType) else 1
        type_ = vec(element, lanes)
        return self if self.type == type_ else Val(self.e, getattr(self.e.b, method)(self.v, type_))

    def sext(self, element: Any) -> Val:
        """Sign-extend each lane."""
        return self._convert("sext", element)

    def zext(self, element: Any) -> Val:
        """Zero-extend each lane."""
        return self._convert("zext", element)

    def trunc(self, element: Any) -> Val:
        """Truncate each lane."""
        return self._convert("trunc", element)

    def to_float(self, element: Any = F32) -> Val:
        """Signed integer to floating point."""
        return self._convert("sitofp", element)

    def to_int(self, element: Any = I32) -> Val:
        """Floating point to signed integer, towards zero."""
        return self._convert("fptosi", element)

    def fpext(self, element: Any) -> Val:
        """A wider floating-point type."""
        return self._convert("fpext", element)

    def fptrunc(self, element: Any) -> Val:
        """A narrower floating-point type."""
        return self._convert("fptrunc", element)


@dataclass(frozen=True, slots=True)
class Var:
    """A mutable variable; LLVM turns it into registers."""

    e: Emit
    slot: Any
    type: Any

    def get(self) -> Val:
        """Its value now."""
        return Val(self.e, self.e.b.load(self.slot, typ=self.type))

    def set(self, value: Val | float) -> None:
        """Give it another value."""
        self.e.b.store(self.e.typed(value, self.type).v, self.slot)


@dataclass(slots=True)
class Emit:
    """Emits the body of one function."""

    module: Any
    b: Any
    target: Target
    entry: Any

    # ---- constants ----

    def typed(self, value: Val | float, type_: Any) -> Val:
        """A Python number as a constant of `type_` (all lanes), or the value itself."""
        if isinstance(value, Val):
            if value.type != type_:
                raise CompileError("the emitter mixes types", found=str(value.type), expected=str(type_))
            return value
        if isinstance(type_, ir.VectorType):
            element = self._scalar(value, type_.element)
            return Val(self, ir.Constant(type_, [element] * type_.count))
        return Val(self, ir.Constant(type_, self._scalar(value, type_)))

    @staticmethod
    def _scalar(value: float, type_: Any) -> float:
        return float(value) if isinstance(type_, (ir.FloatType, ir.DoubleType, ir.HalfType)) else int(value)

    def like(self, value: Val | float, other: Val) -> Val:
        """A number as a constant of the type of `other`."""
        return self.typed(value, other.type)

    def i64(self, value: int) -> Val:
        """A 64-bit constant."""
        return self.typed(value, I64)

    def table(self, element: Any, values: Sequence[float]) -> Val:
        """A constant vector."""
        return Val(self, ir.Constant(vec(element, len(values)), [self._scalar(x, element) for x in values]))

    # ---- memory ----

    def at(self, pointer: Val, index: Val | int, element: Any = I8) -> Val:
        """The address of element `index` behind `pointer`."""
        offset = self.typed(index, I64) if not isinstance(index, Val) else index
        return Val(self, self.b.gep(pointer.v, [offset.v], source_etype=element))

    def load(self, pointer: Val, type_: Any, index: Val | int | None = None, element: Any = None) -> Val:
        """Load `type_`, unaligned; `index` counts elements of the lane type."""
        if index is not None:
            pointer = self.at(pointer, index, element or self._element(type_))
        return Val(self, self.b.load(pointer.v, typ=type_, align=1))

    def store(self, value: Val, pointer: Val, index: Val | int | None = None) -> None:
        """Store, unaligned; `index` counts elements of the lane type."""
        if index is not None:
            pointer = self.at(pointer, index, value.element)
        self.b.store(value.v, pointer.v, align=1)

    @staticmethod
    def _element(type_: Any) -> Any:
        return type_.element if isinstance(type_, ir.VectorType) else type_

    def masked_load(self, pointer: Val, type_: Any, mask: Val) -> Val:
        """The lanes where the mask is set; zero elsewhere. Other addresses are not touched."""
        zero = self.typed(0, type_)
        name = f"llvm.masked.load.v{type_.count}{_suffix(type_.element)}.p0"
        return self.call(name, type_, pointer, self.typed(1, I32), mask, zero)

    def masked_store(self, value: Val, pointer: Val, mask: Val) -> None:
        """Store the lanes where the mask is set."""
        name = f"llvm.masked.store.v{value.type.count}{_suffix(value.element)}.p0"
        self.call(name, ir.VoidType(), value, pointer, self.typed(1, I32), mask)

    def tail_mask(self, count: Val, lanes: int = LANES) -> Val:
        """Lanes below `count` (i64)."""
        index = self.table(I32, list(range(lanes)))
        return index < self.splat(count.trunc(I32), lanes)

    def local(self, element: Any, count: int) -> Val:
        """Scratch memory of the function, 64-byte aligned."""
        with self.b.goto_block(self.entry):
            slot = self.b.alloca(ir.ArrayType(element, count))
            slot.align = 64
            slot.type = PTR  # llvmlite gives it a typed pointer, which LLVM no longer has
        return Val(self, slot)

    def var(self, initial: Val | float, type_: Any = None) -> Var:
        """A mutable variable."""
        type_ = initial.type if isinstance(initial, Val) else type_
        with self.b.goto_block(self.entry):
            slot = self.b.alloca(type_)
        variable = Var(self, slot, type_)
        variable.set(initial)
        return variable

    def prefetch(self, pointer: Val) -> None:
        """Ask for a cache line that is read soon, beyond the first-level cache; never faults."""
        self.call("llvm.prefetch.p0", ir.VoidType(), pointer, *(self.typed(n, I32) for n in (0, 1, 1)))

    # ---- control ----

    @contextmanager
    def loop(self, start: Val | int, stop: Val | int, step: int = 1) -> Generator[Val]:
        """`for i in range(start, stop, step)` over i64."""
        counter = self.var(self.typed(start, I64) if not isinstance(start, Val) else start)
        limit = self.typed(stop, I64) if not isinstance(stop, Val) else stop
        head, body, after = (self.b.append_basic_block(name) for name in ("loop", "body", "after"))
        self.b.branch(head)
        self.b.position_at_end(head)
        self.b.cbranch((counter.get() < limit).v, body, after)
        self.b.position_at_end(body)
        yield counter.get()
        counter.set(counter.get() + step)
        self.b.branch(head)
        self.b.position_at_end(after)

    @contextmanager
    def loop_while(self, condition: Callable[[], Val]) -> Generator[None]:
        """Repeat while the condition, evaluated before each round, holds."""
        head, body, after = (self.b.append_basic_block(name) for name in ("while", "body", "after"))
        self.b.branch(head)
        self.b.position_at_end(head)
        self.b.cbranch(condition().v, body, after)
        self.b.position_at_end(body)
        yield
        self.b.branch(head)
        self.b.position_at_end(after)

    @contextmanager
    def when(self, condition: Val) -> Generator[None]:
        """Only if the condition (i1) holds."""
        with self.b.if_then(condition.v):
            yield

    @contextmanager
    def either(self, condition: Val) -> Generator[tuple[Any, Any]]:
        """`with e.either(c) as (then, otherwise): with then: ... with otherwise: ...`."""
        with self.b.if_else(condition.v) as branches:
            yield cast("tuple[Any, Any]", branches)

    def select(self, condition: Val, yes: Val, no: Val | float) -> Val:
        """Lane-wise choice."""
        return Val(self, self.b.select(condition.v, yes.v, self.like(no, yes).v))

    # ---- vectors ----

    def splat(self, scalar: Val, lanes: int = LANES) -> Val:
        """All lanes the same."""
        if lanes == 1:
            return scalar
        type_ = vec(scalar.type, lanes)
        first = self.b.insert_element(ir.Constant(type_, ir.Undefined), scalar.v, ir.Constant(I32, 0))
        zeros = ir.Constant(vec(I32, lanes), [0] * lanes)
        return Val(self, self.b.shuffle_vector(first, ir.Constant(type_, ir.Undefined), zeros))

    def shuffle(self, left: Val, right: Val, lanes: Sequence[int]) -> Val:
        """Lanes picked from two vectors laid end to end."""
        return Val(self, self.b.shuffle_vector(left.v, right.v, ir.Constant(vec(I32, len(lanes)), list(lanes))))

    def part(self, value: Val, start: int, count: int) -> Val:
        """`count` lanes from `start`; a scalar for one."""
        if count == 1:
            return self.lane(value, start)
        return self.shuffle(value, value, range(start, start + count))

    def join(self, *parts: Val) -> Val:
        """Vectors of one size laid end to end (a power of two of them)."""
        values = list(parts)
        while len(values) > 1:
            count = values[0].type.count
            values = [self.shuffle(a, b, range(2 * count)) for a, b in zip(values[::2], values[1::2], strict=True)]
        return values[0]

    def lane(self, value: Val, index: int) -> Val:
        """One lane as a scalar."""
        return Val(self, self.b.extract_element(value.v, ir.Constant(I32, index)))

    def with_lane(self, vector: Val, scalar: Val, index: int) -> Val:
        """The vector with another scalar in one lane."""
        return Val(self, self.b.insert_element(vector.v, scalar.v, ir.Constant(I32, index)))

    def reduce(self, value: Val, combine: Callable[[Val, Val], Val]) -> Val:
        """All lanes combined in a fixed tree: halves against each other."""
        count = value.type.count
        while count > 1:
            count //= 2
            value = combine(self.part(value, 0, count), self.part(value, count, count))
        return value

    # ---- intrinsics ----

    def call(self, name: str, result: Any, *operands: Val) -> Val:
        """Call a function or an intrinsic by its full name."""
        function = self.module.globals.get(name)
        if function is None:
            type_ = ir.FunctionType(result, [operand.type for operand in operands])
            function = ir.Function(self.module, type_, name)
        return Val(self, self.b.call(function, [operand.v for operand in operands]))

    def keep_order(self, values: Sequence[Val]) -> list[Val]:
        """The same vectors, behind all that was emitted for them and before all loads that follow; no instruction.

        LLVM hoists whatever can be loaded early, and then has no registers left for it.
        """
        register = "x" if self.target.is_x86 else "w"
        constraints = [f"={register}"] * len(values) + [str(index) for index in range(len(values))]
        types = [value.type for value in values]
        type_ = ir.FunctionType(ir.LiteralStructType(types), types)
        code = ir.InlineAsm(type_, "", ",".join([*constraints, "~{memory}"]), side_effect=True)
        kept = self.b.call(code, [value.v for value in values])
        return [Val(self, self.b.extract_value(kept, index)) for index in range(len(values))]

    def void_call(self, name: str, *operands: Val) -> None:
        """Call a function that gives nothing."""
        self.call(name, ir.VoidType(), *operands)

    def intrinsic(self, name: str, *operands: Val) -> Val:
        """An intrinsic overloaded on the type of its first operand and giving that type."""
        type_ = operands[0].type
        count = f"v{type_.count}" if isinstance(type_, ir.VectorType) else ""
        return self.call(f"llvm.{name}.{count}{_suffix(self._element(type_))}", type_, *operands)

    def fma(self, a: Val, b: Val | float, c: Val | float) -> Val:
        """a * b + c; rounded once where the target has it (all but baseline x86-64)."""
        b, c = self.like(b, a), self.like(c, a)
        return self.intrinsic("fma", a, b, c) if self.target.fma else a * b + c

    def maximum(self, a: Val, b: Val | float) -> Val:
        """The larger; b where a is not a number."""
        other = self.like(b, a)
        return self.select(a > other, a, other)

    def minimum(self, a: Val, b: Val | float) -> Val:
        """The smaller; b where a is not a number."""
        other = self.like(b, a)
        return self.select(a < other, a, other)

    def abs(self, a: Val) -> Val:
        """Magnitude of floats."""
        return self.intrinsic("fabs", a)

    def sqrt(self, a: Val) -> Val:
        """Square root, correctly rounded."""
        return self.intrinsic("sqrt", a)

    def round_even(self, a: Val) -> Val:
        """Round to the nearest whole float32, ties to even, for |a| < 2^22 (adding and taking off 1.5 * 2^23)."""
        magic = float(3 << 22)
        return (a + magic) - magic

    # ---- primitives that depend on the target ----

    def half_to_float(self, bits: Val) -> Val:
        """IEEE half (as i16 lanes) to float32, subnormals included."""
        if self.target.half:
            lanes = bits.type.count if isinstance(bits.type, ir.VectorType) else 1
            return bits.bitcast(vec(F16, lanes)).fpext(F32)
        wide = bits.zext(I32)
        sign = (wide & 0x8000) << 16
        magnitude = (wide & 0x7FFF) << 13
        lanes = bits.type.count if isinstance(bits.type, ir.VectorType) else 1
        # the exponent bias differs by 112; a multiplication also gets subnormals right
        scaled = (magnitude.bitcast(vec(F32, lanes)) * 2.0**112).bitcast(wide.type)
        special = magnitude >= (0x7C00 << 13)
        infinite = magnitude | (0xFF << 23)
        return (self.select(special, infinite, scaled) | sign).bitcast(vec(F32, lanes))

    def float_to_half(self, value: Val) -> Val:
        """Float32 to IEEE half (as i16 lanes), rounded to nearest even."""
        lanes = value.type.count if isinstance(value.type, ir.VectorType) else 1
        if self.target.half:
            return value.fptrunc(F16).bitcast(vec(I16, lanes))
        bits = value.bitcast(vec(I32, lanes))
        sign, magnitude = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
        normal = (magnitude + 0xFFF + ((magnitude >> 13) & 1) - (112 << 23)) >> 13
        # adding 0.5 leaves the sum in units of 2^-24, which is what a subnormal half counts in
        half = 0x3F000000
        tiny = (magnitude.bitcast(value.type) + 0.5).bitcast(bits.type) - half
        result = self.select(magnitude < 0x38800000, tiny, normal)
        result = self.select(magnitude >= 0x477FF000, self.like(0x7C00, bits), result)
        result = self.select(magnitude > 0x7F800000, self.like(0x7E00, bits), result)
        return (result | sign).trunc(I16)

    def float_to_bf16(self, value: Val) -> Val:
        """Float32 to bfloat16 (as i16 lanes), rounded to nearest even; not-a-number stays one."""
        lanes = value.type.count if isinstance(value.type, ir.VectorType) else 1
        bits = value.bitcast(vec(I32, lanes))
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        broken = (bits & 0x7FFFFFFF) > 0x7F800000
        return self.select(broken, (bits >> 16) | 64, rounded).trunc(I16)

    def bf16_to_float(self, bits: Val) -> Val:
        """bfloat16 (as i16 lanes) to float32."""
        lanes = bits.type.count if isinstance(bits.type, ir.VectorType) else 1
        return (bits.zext(I32) << 16).bitcast(vec(F32, lanes))

    def round_to_bf16(self, value: Val) -> Val:
        """Float32 to bfloat16 (as i16 lanes) for products on `bf16` targets: as `float_to_bf16`, subnormals to 0."""
        return value.fptrunc(BF16).bitcast(vec(I16, value.type.count))

    def dot_bf16(self, accumulator: Val, left: Val, right: Val) -> Val:
        """accumulator[i] + the products of both bfloat16 of word i (2 to 16 lanes of i32); only on `bf16` targets.

        Both halves of a word in one order, each with one rounding; subnormals count as 0.
        """
        lanes = accumulator.type.count
        if lanes < LANES:
            wide = [self.shuffle(x, x, [i % lanes for i in range(LANES)]) for x in (accumulator, left, right)]
            return self.part(self.dot_bf16(*wide), 0, lanes)
        pairs = vec(BF16, 2 * LANES)
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        return self.call(name, VF, accumulator, left.bitcast(pairs), right.bitcast(pairs))


def _suffix(element: Any) -> str:
    if isinstance(element, ir.FloatType):
        return "f32"
    if isinstance(element, ir.DoubleType):
        return "f64"
    return f"i{element.width}"


def set_width(function: Any, target: Target) -> None:
    """Ask LLVM to use the full register width of the target."""
    if target.vector_bits == 512:
        for name in ("prefer-vector-width", "min-legal-vector-width"):
            # llvmlite's own `add` takes attributes without a value only
            set[str].add(function.attributes, f'"{name}"="512"')
