"""``python -m tests.simulation``: see ``soak``."""

from __future__ import annotations

import sys

from tests.simulation.soak import main

sys.exit(main())
