"""`python -m rlx.cli.first_token JSON`: one start of a model, timed from the start of the process.

In: `{"reference": ..., "threads": ...}`, the fields of `LoadFlags`. Out: a `Start` as JSON. Run by `measure.py`.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from rlx.cli.loading import LoadFlags, loaded
from rlx.cli.measure import first_token
from rlx.cli.output import write_json
from rlx.cli.reporting import report_failure


def run(arguments: str) -> int:
    """Load, generate one token (or encode one text), print. Returns the exit code."""
    try:
        with loaded(LoadFlags(**json.loads(arguments))) as model:
            start = first_token(model)
    except (Exception, KeyboardInterrupt) as error:
        return report_failure(error, debug=False)
    write_json(dataclasses.asdict(start), indent=None)
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))
