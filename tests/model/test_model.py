"""Manager, store and supervisors through random orders of calls, crashes and delays.

A failure prints the steps, what happened, and how to repeat it. Names are in sets here and there:
`PYTHONHASHSEED=0` makes a run that can be repeated exactly.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import Cluster

#: Some 0.03 to 0.06 s each.
EXAMPLES = 300
LONG_EXAMPLES_ENV_VAR = "RAY_JOBS_MODEL_EXAMPLES"
LONG_EXAMPLES = 20_000
STEPS = 40


def run(examples: int) -> None:
    run_state_machine_as_test(
        Cluster,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_rules_hold_whatever_happens() -> None:
    run(EXAMPLES)


@pytest.mark.long
def test_rules_hold_whatever_happens_for_long() -> None:
    run(int(os.environ.get(LONG_EXAMPLES_ENV_VAR, LONG_EXAMPLES)))
