"""The Idempotency-Key header as it may be written, and what makes two requests the same."""

from __future__ import annotations

import pytest

from common.errors import BadRequest
from gateway.idempotency import fingerprint, key_digest, parse_key

NAME = b"idempotency-key"


@pytest.mark.parametrize("text", [b"k 1", b'"k 1"', b' "k 1" ', b'" k 1 "'])
def test_a_key_may_stand_in_quotes_or_bare(text: bytes) -> None:
    assert parse_key([(b"accept", b"x"), (NAME, text)]) == "k 1"


def test_without_the_header_there_is_no_key() -> None:
    assert parse_key([(b"accept", b"x")]) == ""


@pytest.mark.parametrize("given", [[b"a", b"b"], [b"a", b"a"], [b""], [b'""'], [b"x" * 256], [b"a\tb"], ["ä".encode()]])
def test_a_key_that_is_none_or_given_twice_is_refused(given: list[bytes]) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_key([(NAME, value) for value in given])
    assert refused.value.failure.param == "Idempotency-Key"


def test_the_order_of_fields_makes_no_difference_and_all_else_does() -> None:
    one = fingerprint("/v1/x", True, {"a": 1, "b": {"c": 2, "d": 3}}, None)
    assert one == fingerprint("/v1/x", True, {"b": {"d": 3, "c": 2}, "a": 1}, None)
    others = [("/v1/y", True, {"a": 1}, None), ("/v1/x", False, {"a": 1}, None), ("/v1/x", True, {"a": 1}, 1)]
    assert len({fingerprint(*other) for other in others} | {fingerprint("/v1/x", True, {"a": 1}, None), one}) == 5


def test_the_digest_of_a_key_never_tells_the_key() -> None:
    assert key_digest("secret") != key_digest("other")
    assert "secret" not in key_digest("secret") and len(key_digest("secret")) == 32
