"""The environment that an entrypoint gets on its node."""

from __future__ import annotations

import logging
import tracemalloc
import types
from typing import Any

import pytest

from ray_jobs.supervisor.entrypoint import (
    MAX_ENV_VARS_CHARS,
    MAX_VARIABLE_CHARS,
    TooLongError,
    entrypoint_env,
    expanded,
    stop_settings,
)


def environment(env_vars: dict[str, str]) -> dict[str, str]:
    order: dict[str, Any] = {
        "drop_env": [],
        "keeps_omp_num_threads": True,
        "env_vars": env_vars,
        "default_env": {},
        "env": {},
        "attempt": "a",
    }
    here: Any = types.SimpleNamespace(
        environment={"HOME": "/home/a"}, node_environment={}, gcs_address="127.0.0.1:1"
    )
    return entrypoint_env(order, here)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("$HOME/x", "/home/a/x"),
        ("${HOME}x$HOME", "/home/ax/home/a"),
        ("$NONE ${none} ${NONE}.", "$NONE ${none} ."),
        ("$B", "b"),
        ("$$", "$$"),
    ],
)
def test_variables_are_put_in(value: str, expected: str) -> None:
    assert environment({"B": "b", "A": value})["A"] == expected


def test_a_value_may_be_as_long_as_a_kernel_takes() -> None:
    half = "x" * (MAX_VARIABLE_CHARS // 2)
    assert environment({"A": half, "B": "$A$A"})["B"] == half * 2
    with pytest.raises(TooLongError, match="The variable C of env_vars is too long"):
        environment({"A": half, "B": "$A$A", "C": "$A${B}"})
    with pytest.raises(TooLongError):
        expanded("x" * 11, {}, 10)
    assert expanded("${A}" * 10 + "12345", {"A": ""}, 10) == "12345"


def test_values_that_grow_by_one_another_take_no_memory() -> None:
    bomb = {"A0": "x" * 10_000, **{f"A{n}": f"$A{n - 1}" * 10 for n in range(1, 9)}}
    many = {"A": "x" * MAX_VARIABLE_CHARS, **{f"B{n}": "$A" for n in range(1000)}}
    for env_vars in (bomb, many):
        tracemalloc.start()
        try:
            with pytest.raises(TooLongError, match="all together 6,291,456"):
                environment(env_vars)
            assert tracemalloc.get_traced_memory()[1] < 2 * MAX_ENV_VARS_CHARS
        finally:
            tracemalloc.stop()


def test_settings_that_are_none_are_told_without_their_values(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert stop_settings(
            {"RAY_JOB_STOP_SIGNAL": "secret", "RAY_JOB_STOP_WAIT_TIME_S": "secret"}
        ) == (15, 3)
    assert caplog.text.count("RAY_JOB_STOP_") == 2
    assert "secret" not in caplog.text
