"""docs/models.md names every family that RLX runs, with the formats and the number of models it was compared on."""

from __future__ import annotations

from tests.models.report import ABSENT, DOCUMENT, rows


def test_the_document_has_every_family() -> None:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    for row in rows():
        assert row.cases, row.family
        assert sum(line.startswith(row.start) for line in lines) == 1, f"{row.start}: run python -m tests.models.report"


def test_the_document_has_no_other_family_and_says_what_is_absent() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert (
        sum(line.startswith("| `") for line in text.splitlines()) == len(rows()) + 4
    )  # with the headings of four tables
    assert all(f"- {name}: {reason}." in text for name, reason in ABSENT.items())
