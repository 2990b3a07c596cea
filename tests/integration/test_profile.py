"""A compile profile, from TOML or as an object, decides how a model and a flow are compiled; arguments beat it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import rlx
from rlx.errors import ModelNotFoundError, OptionError
from rlx.flow import Profile
from rlx.flow.blocks import LinearStage, RmsNormStage
from rlx.runtime.load import merged_profile


def flow() -> rlx.ModelFlow:
    rows = rlx.Dim("rows", max=64)
    return (
        rlx.ModelFlow("two")
        .input("x", (rows, 32))
        .stage(RmsNormStage("norm", eps=1e-5))
        .stage(LinearStage("head"))
        .tap("y")
    )


WEIGHTS = {
    "norm": np.linspace(0.5, 1.5, 32).astype(np.float32),
    "head": np.linspace(-1, 1, 32 * 8).astype(np.float32).reshape(8, 32),
}


def test_arguments_beat_the_profile_and_the_profile_beats_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "profile.toml"
    file.write_text('precision = "exact"\npage_size = 64\n')
    monkeypatch.setenv("RLX_PRECISION", "fast")
    monkeypatch.setenv("RLX_TARGET", "portable")
    assert merged_profile(None, None, None) == Profile(precision="fast", target="portable")
    assert merged_profile(file, None, None) == Profile(precision="exact", page_size=64)
    assert merged_profile(file, "fast", None).precision == "fast"
    assert merged_profile(Profile(target="avx2"), None, "portable").target == "portable"


def test_a_bad_profile_is_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "profile.toml"
    file.write_text('precission = "exact"\n')
    with pytest.raises(OptionError, match="precission"):
        rlx.compile(flow(), WEIGHTS, profile=file)
    with pytest.raises(ModelNotFoundError, match="profile"):
        rlx.compile(flow(), WEIGHTS, profile=tmp_path / "none.toml")


def test_the_reference_is_the_oracle_of_the_cpu_and_null_runs_nothing() -> None:
    x = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32)
    found = rlx.compile(flow(), WEIGHTS)(x=x)["y"]
    expected = rlx.compile(flow(), WEIGHTS, target="reference")(x=x)["y"]
    # 32 products of about 1 in float32, summed in another order
    np.testing.assert_allclose(found, expected, atol=1e-5)
    nothing = rlx.compile(flow(), WEIGHTS, target="null")(x=x)["y"]
    assert nothing.shape == expected.shape
    assert not nothing.any()


def test_fusion_can_be_left_out() -> None:
    def gate(emit, x):
        return emit("mul", emit("silu", x), x)

    gated = rlx.ModelFlow("gated").input("x", (rlx.Dim("rows", max=64), 32)).custom(gate).tap("y")
    fused, plain = (rlx.compile(gated, profile=Profile(fusion=fusion)) for fusion in (True, False))
    assert fused.text["lir"].count("step ") == 1
    assert plain.text["lir"].count("step ") == 2
    x = np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)
    assert np.array_equal(fused(x=x)["y"], plain(x=x)["y"])
