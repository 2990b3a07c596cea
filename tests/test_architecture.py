"""The order of the layers and a few promises of the design, checked by reading the source (AST), not by running it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rlx

# A file imports from its own layer and from those above it in this list. The longest matching prefix counts.
LAYERS = (
    "errors",
    "config",
    "core",
    "ops",
    "core.rewrite",  # part of the kit, but new nodes get their types from the ops
    "core.verify",  # likewise: what holds for a node is said by its op
    "io",
    "flow",
    "models",
    "hir",
    "mir",
    "lir",
    "autodiff",
    "backends",
    "inspect",
    "compiler",
    "runtime",
    "serve",
    "",  # rlx/__init__.py: the public names
    "cli",
    "__main__",
)

# Named after one model, so nothing outside models/ (and io/, which reads files that name them) may carry it.
MODEL_NAMES = {
    "bert", "deepseek", "falcon", "gemma", "gpt", "internlm", "llama", "minilm", "mistral", "mixtral", "phi", "qwen",
    "smollm", "whisper",
}  # fmt: skip
GENERAL_FOLDERS = ("core", "ops", "flow", "hir", "mir", "lir", "autodiff", "backends", "runtime")
# Names of published algorithms and formats that contain the name of a model.
ALLOWED_IDENTIFIERS = frozenset({"_llama3"})  # `rope_type` "llama3" of Hugging Face configurations

HEAVY = ("huggingface_hub", "jinja2", "llvmlite", "rich", "safetensors", "tokenizers", "typer")
NEVER = ("torch", "transformers", "llama_cpp", "gguf", "tests")

ROOT = Path(rlx.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def module_of(path: Path) -> str:
    """`rlx/core/dim.py` is `core.dim`, `rlx/core/__init__.py` is `core`."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def layer_of(module: str) -> int:
    """Position in `LAYERS` of the longest prefix of a module; -1 for none."""
    prefix = module
    while prefix and prefix not in LAYERS:
        prefix = prefix.rpartition(".")[0]
    return LAYERS.index(prefix) if prefix in LAYERS and (prefix or not module) else -1


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute name and line of everything a file imports, in functions too."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            module = node.module or ""
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                yield (whole if whole.removeprefix("rlx.") in MODULES else module), node.lineno


def internal_imports(path: Path) -> Iterator[tuple[str, int]]:
    """The imports of RLX itself, without the `rlx.` in front."""
    for name, line in imports_of(path):
        if name == "rlx" or name.startswith("rlx."):
            yield name.removeprefix("rlx").removeprefix("."), line


@pytest.mark.parametrize("path", FILES, ids=[module_of(path) or "rlx" for path in FILES])
def test_imports_go_to_the_own_layer_or_an_earlier_one(path: Path) -> None:
    own = layer_of(module_of(path))
    assert own >= 0, f"{path} belongs to no layer"
    late = [f"line {line}: {name}" for name, line in internal_imports(path) if layer_of(name) > own]
    assert not late, f"{module_of(path)} imports from later layers: {late}"


def test_an_import_of_a_later_layer_would_be_seen() -> None:
    """The check itself: every internal import is one that `layer_of` knows, and there are hundreds of them."""
    edges = [(path, name) for path in FILES for name, _ in internal_imports(path)]
    assert all(layer_of(name) >= 0 for _, name in edges)
    assert len({layer_of(name) for _, name in edges}) >= 8
    assert layer_of("core.dim") < layer_of("ops.op") < layer_of("core.verify") < layer_of("mir.anything")
    assert layer_of("unknown") == -1


def test_backends_do_not_know_each_other() -> None:
    for path in FILES:
        match = re.match(r"backends\.(\w+)", module_of(path))
        if match is None:
            continue
        foreign = [
            f"{path.name}:{line}: {name}"
            for name, line in internal_imports(path)
            if (other := re.match(r"backends\.(\w+)", name)) and other[1] != match[1]
        ]
        assert not foreign


LOOKING = ("runtime.profiler", "runtime.explainer")
"""Files of the runtime that look into a model, which all others import in functions only: running needs none of it."""


def test_inspect_is_imported_by_the_compiler_the_commands_and_the_public_names_only() -> None:
    for path in FILES:
        importer = module_of(path)
        if importer.split(".")[0] in ("inspect", "compiler", "cli", "") or importer in LOOKING:
            continue
        late = {
            node
            for function in ast.walk(TREES[path])
            if isinstance(function, ast.FunctionDef)
            for node in ast.walk(function)
        }
        late |= {node for branch in ast.walk(TREES[path]) if is_for_types(branch) for node in ast.walk(branch)}
        early = [
            node
            for node in ast.walk(TREES[path])
            if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in late
        ]
        names = [name for name, line in internal_imports(path) if line in {node.lineno for node in early}]
        looking = [name for name in names if name.split(".")[0] == "inspect" or name in LOOKING]
        assert not looking, f"{path} imports {looking} when it is imported"
        assert importer.split(".")[0] == "runtime" or not any(
            name.split(".")[0] == "inspect" for name, _ in internal_imports(path)
        ), f"{path} imports rlx.inspect"


def is_for_types(node: ast.AST) -> bool:
    """Whether this is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_only_config_reads_the_environment() -> None:
    for path in FILES:
        if module_of(path) == "config":
            continue
        for node in ast.walk(TREES[path]):
            name = node.attr if isinstance(node, ast.Attribute) else node.name if isinstance(node, ast.alias) else ""
            assert name not in ("environ", "environb", "getenv", "putenv"), f"{path}: {name}"


@pytest.mark.parametrize("forbidden", NEVER)
def test_reference_libraries_are_never_imported(forbidden: str) -> None:
    found = [str(path) for path in FILES for name, _ in imports_of(path) if name.split(".")[0] == forbidden]
    assert not found


def test_files_stay_below_six_hundred_lines() -> None:
    long = {str(path): count for path in FILES if (count := len(path.read_text().splitlines())) > 600}
    assert not long


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path) for path in FILES if TREES[path].body and len((ast.get_docstring(TREES[path]) or "").strip(" .")) < 10
    ]
    assert not silent


def identifiers(tree: ast.AST) -> Iterator[str]:
    """Every name that the code gives or uses; text in strings is not looked at."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, (ast.arg, ast.keyword)) and node.arg:
            yield node.arg
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.alias):
            yield from node.name.split(".")


def words(identifier: str) -> set[str]:
    """`Llama3Scaling` and `llama3_scaling` hold the words llama and scaling."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]*|[a-z]+", identifier)
    return {part.lower() for part in parts}


def test_no_model_is_named_outside_models() -> None:
    assert words("Llama3Scaling") & MODEL_NAMES
    assert not words("alpha_philosophy") & MODEL_NAMES
    for path in FILES:
        if module_of(path).split(".")[0] not in GENERAL_FOLDERS:
            continue
        named = {name for name in identifiers(TREES[path]) if words(name) & MODEL_NAMES} - ALLOWED_IDENTIFIERS
        assert not named, f"{path}: {sorted(named)}"


def test_importing_rlx_loads_nothing_heavy() -> None:
    script = f"import sys, rlx; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT.parent)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_public_names_are_few_and_exist() -> None:
    public = getattr(rlx, "__all__", [])
    assert len(public) <= 25
    assert all(hasattr(rlx, name) for name in public)
