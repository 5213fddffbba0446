"""What a gateway's watcher and the process that serves tell each other, of whichever versions."""

from __future__ import annotations

import json

import pytest

from ray_jobs.cli.server import _serve_watched, options_of
from ray_jobs.errors import RayJobsError
from ray_jobs.handover import Handover, Ready


def test_what_is_handed_over_comes_out() -> None:
    handover = Handover(7, [3, 4], 5, {"host": "::1"})
    assert Handover.decoded(handover.encoded()) == handover


def test_what_a_later_watcher_hands_over_besides_is_left_out() -> None:
    handover = Handover(7, [3], 5, {})
    told = json.dumps({**json.loads(handover.encoded()), "more": 1})
    assert Handover.decoded(told) == handover


@pytest.mark.parametrize("told", ["", "[]", "{}", '{"watcher": 1}', "no JSON"])
def test_one_that_cannot_read_it_says_so(told: str) -> None:
    with pytest.raises(RayJobsError, match="can't be read") as caught:
        _serve_watched(told)
    assert "another version" in (caught.value.hint or "")


def test_options_that_are_unknown_are_left_out_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    def serve(*, address: str, tls_cert: str | None = None) -> None:
        """Take some options."""

    handed = {"address": "a:1", "quic": True}
    assert options_of(serve, handed) == {"address": "a:1"}
    assert "quic" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("told", "ready"),
    [
        (Ready(7, "a:1").encoded(), Ready(7, "a:1")),
        (Ready(0, "").encoded(), Ready(0, "")),
        (b"7\n", Ready(7, "")),
        (b"7\na:1\nmore\n", Ready(7, "a:1")),
        (b"no pid\n", Ready(0, "")),
    ],
)
def test_ready(told: bytes, ready: Ready) -> None:
    assert Ready.decoded(told) == ready
