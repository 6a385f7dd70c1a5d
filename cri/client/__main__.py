"""`python -m cri.client`."""

from __future__ import annotations

import sys

from cri.client.main import main

sys.exit(main())
