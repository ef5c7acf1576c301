"""``python -m vidrd_core.cli``, for where the ``vidrd`` command is not on the path."""

import sys

from . import main

sys.exit(main())
