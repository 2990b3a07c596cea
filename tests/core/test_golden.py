"""The golden-text helper: it passes on the same text, fails with a diff on another, and writes when asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden import check_golden


def test_a_golden_text_is_written_compared_and_refused(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="--update-golden"):
        check_golden("hir", "graph g {\n}\n", folder=tmp_path)
    check_golden("hir", "graph g {\n}\n", update=True, folder=tmp_path)
    check_golden("hir", "graph g {\n}\n", folder=tmp_path)
    with pytest.raises(pytest.fail.Exception, match=r"(?s)-graph g \{\n\+graph h \{"):
        check_golden("hir", "graph h {\n}\n", folder=tmp_path)
