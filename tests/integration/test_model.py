"""Random calls from several clients, held against a model (tests/model). CI runs the same few examples each time.

    sudo MODEL=100 .venv/bin/python -m pytest -q -s tests/integration/test_model.py

tries a hundred other ones, each of fifty steps, and prints counts.
"""

from __future__ import annotations

import os
from collections import Counter

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.daemon import Daemon
from tests.model.machine import NodeMachine

_EXAMPLES = int(os.environ.get("MODEL", "0"))


def test_a_node_is_what_its_calls_have_made_it() -> None:
    with Daemon.running() as daemon:
        daemon.import_busybox()
        with daemon.pod("first"):
            pass

        NodeMachine.daemon, NodeMachine.counts = daemon, Counter()
        run_state_machine_as_test(
            NodeMachine,
            settings=settings(
                max_examples=_EXAMPLES or 3,
                stateful_step_count=50 if _EXAMPLES else 20,
                derandomize=not _EXAMPLES,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
        print("\n" + "\n".join(f"{number:6} {what}" for what, number in sorted(NodeMachine.counts.items())))
