"""`python -m cri.daemon`."""

from __future__ import annotations

import sys

from cri.daemon.main import main

sys.exit(main())
