"""Profiles: defaults, TOML, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlx.core.dtype import bf16, f16, f32
from rlx.errors import ModelNotFoundError, OptionError
from rlx.flow import FlowCtx, FlowValue, ModelFlow, Profile


def test_toml_sets_what_it_names_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    path.write_text('precision = "exact"\nfusion = false\npage_size = 64\n')
    assert Profile.load(path) == Profile(precision="exact", fusion=False, page_size=64)
    assert Profile.from_toml('[profile]\ntarget = "avx2"\n') == Profile(target="avx2")
    assert Profile.from_toml("") == Profile()


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ('precision = "rough"', ["precision", "'rough'", "fast or exact"]),
        ('backend = "abacus"', ["backend", "'abacus'"]),
        ("fusion = 1", ["fusion", "true or false"]),
        ("page_size = 0", ["page_size", "1 to 4096"]),
        ("page_size = true", ["page_size"]),
        ("pages = 3", ["no such key", "'pages'", "page_size"]),
        ("precision =", ["not TOML"]),
        ('target = ["avx2"]', ["target"]),
    ],
)
def test_refusals(text: str, facts: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        Profile.from_toml(text, "profile.toml")
    for fact in facts:
        assert fact in str(error.value)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"absent\.toml"):
        Profile.load(tmp_path / "absent.toml")


def test_blocks_see_the_profile() -> None:
    seen: list[Profile] = []

    class Look:
        def emit(self, ctx: FlowCtx, input: FlowValue) -> None:
            seen.append(ctx.profile)

    ModelFlow("look").input("x", (2, 3)).stage(Look()).build(profile=Profile(page_size=8))
    assert seen == [Profile(page_size=8)]


def test_the_kv_cache_follows_the_precision_unless_it_is_named() -> None:
    assert [
        Profile(precision=precision).cache_dtype(has) for precision in ("fast", "exact") for has in (False, True)
    ] == [
        f16,
        bf16,
        f32,
        f32,
    ]
    assert Profile(precision="exact", kv_cache="bf16").cache_dtype(False) == bf16
    with pytest.raises(OptionError, match="kv_cache"):
        Profile(kv_cache="q9")
