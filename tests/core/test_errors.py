"""The failure table: each row one test."""

import pytest

from sidecar.core.cache_status import Provenance
from sidecar.core.errors import (
    FAILURE_TABLE,
    Answer,
    FailureKind,
    PromptError,
    UpstreamFailure,
    Verdict,
    kind_of_status,
)

K, V = FailureKind, Verdict
#        retry, verdict, stale, evicts, status
ROWS = {
    K.CONNECT_ERROR: (True, V.FAILURE, True, False, 503),
    K.CONNECT_TIMEOUT: (True, V.FAILURE, True, False, 504),
    K.TLS_ERROR: (True, V.FAILURE, True, False, 503),
    K.READ_TIMEOUT: (True, V.FAILURE, True, False, 504),
    K.RESET: (True, V.FAILURE, True, False, 503),
    K.SERVER_ERROR: (True, V.FAILURE, True, False, 503),
    K.TOO_MANY_REQUESTS: (True, V.NEUTRAL, True, False, 503),
    K.NOT_ADMITTED: (False, V.SUCCESS, True, False, 502),
    K.ENDPOINT_GONE: (False, V.NEUTRAL, True, False, 503),
    K.GONE: (False, V.SUCCESS, False, True, None),
    K.REFUSED: (False, V.SUCCESS, False, False, None),
    K.GARBAGE: (False, V.FAILURE, True, False, 502),
    K.BAD_DOCUMENT: (False, V.NEUTRAL, True, False, 502),
    K.CIRCUIT_OPEN: (False, V.NEUTRAL, True, False, 503),
    K.OVERLOAD: (False, V.NEUTRAL, True, False, 503),
    K.DEADLINE: (False, V.NEUTRAL, True, False, 504),
    K.CANCELLED: (False, V.NEUTRAL, True, False, 503),
}


@pytest.mark.parametrize("kind", FailureKind)
def test_row_of_the_failure_table(kind: FailureKind) -> None:
    rule = FAILURE_TABLE[kind]
    assert (rule.retry, rule.verdict, rule.stale, rule.evicts, rule.status) == ROWS[kind]
    assert rule.meaning


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *[(status, K.GONE) for status in (400, 404, 410, 422)],
        *[(status, K.REFUSED) for status in (401, 402, 403, 405, 407, 408, 409, 413, 415, 428, 431, 451, 499)],
        (429, K.TOO_MANY_REQUESTS),
        *[(status, K.SERVER_ERROR) for status in (500, 502, 503, 504, 599)],
        *[(status, K.GARBAGE) for status in (201, 204, 206, 301, 302, 304, 307, 600)],
    ],
)
def test_status_is_of_a_kind(status: int, kind: FailureKind) -> None:
    assert kind_of_status(status) is kind


def test_a_4xx_is_an_answer_never_retried_never_held_against_the_upstream_never_covered() -> None:
    for status in range(400, 500):
        if status != 429:
            rule = FAILURE_TABLE[kind_of_status(status)]
            assert (rule.retry, rule.verdict, rule.stale, rule.status) == (False, V.SUCCESS, False, None)


def test_a_failure_knows_its_row_and_says_its_kind() -> None:
    failure = UpstreamFailure(K.RESET, "the connection broke")
    assert failure.rule is FAILURE_TABLE[K.RESET]
    assert str(failure) == "reset: the connection broke"


def test_an_error_says_its_detail() -> None:
    error = PromptError(422, "it lacks x", reason="missing", missing=("x",), answer=Answer(404, b"", "text/plain"))
    assert (str(error), error.missing, error.provenance) == ("it lacks x", ("x",), Provenance())
