"""The ``vidrd`` command: generate, extend, bridge, convert, info, evaluate.

Everything heavy is imported by the command that needs it, so that ``vidrd --help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from .commands import convert, extend, generate, info
from .evaluate import evaluate
from .goals import bridge
from .parser import build
from .running import FAILED, INTERRUPTED, say

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    # An error of the input ends in one line. Any other keeps its traceback, which a bug report needs.
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        say("stopped")
        return INTERRUPTED
    except (ValueError, OSError) as error:
        if options.verbose:
            logger.exception("the traceback, because of --verbose")
        say(f"error: {error}")
        return FAILED
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        say(
            f"error: {error}\nUse --dtype float16, --split-guidance, --offload model, --storage fp8, fewer --frames, "
            "or a smaller --width and --height"
        )
        return FAILED


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    return build(generate=generate, extend=extend, bridge=bridge, convert=convert, info=info, evaluate=evaluate)
