"""What every command does with a mistake in its request: print it and exit with 2 before any work starts."""

from __future__ import annotations

import sys
from contextlib import contextmanager

from lib.runtime import termination


@contextmanager
def refusing(program: str):
    """Context of the checks before work begins: prints a ValueError, or a known failure such as an unreachable store, and exits with 2."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{termination.word()} before anything was started.", file=sys.stderr)
        sys.exit(termination.code())
    except Exception as e:
        from lib.runtime import failure

        if not isinstance(e, ValueError) and not failure.known(e):
            raise
        text = str(e) if isinstance(e, ValueError) else failure.explain(e)
        print(f"{program} can't start:", *text.splitlines(), sep="\n  ", file=sys.stderr)
        sys.exit(2)
