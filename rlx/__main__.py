"""`python -m rlx`: the same as the `rlx` command."""

from __future__ import annotations

from rlx.cli.main import run

if __name__ == "__main__":
    run()
