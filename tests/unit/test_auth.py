"""Keys and whom they stand for."""

from __future__ import annotations

import hashlib

import pytest
from starlette.requests import Request

from common.config import Settings
from common.errors import Unauthenticated
from gateway.auth import Auth, Principal, tenant_of

ONE = "key-one-0123456789"
TWO = "key-two-0123456789"


def auth(**more: str) -> Auth:
    return Auth(Settings(api_keys=f"{ONE},{TWO}", **more))  # pyright: ignore[reportArgumentType]


def principal(found: Auth, *headers: tuple[str, str]) -> Principal:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return found.principal(Request({"type": "http", "method": "GET", "path": "/", "headers": raw}))


@pytest.mark.parametrize(
    "header",
    [("authorization", f"Bearer {ONE}"), ("authorization", f"bearer  {ONE} "), ("x-api-key", ONE)],
)
def test_a_key_may_come_in_either_header(header: tuple[str, str]) -> None:
    assert principal(auth(), header) == Principal(tenant_of(ONE.encode()), "admin")


def test_each_key_is_a_tenant_of_its_own_that_stays_the_same() -> None:
    first, second = (principal(auth(), ("authorization", f"Bearer {key}")).tenant for key in (ONE, TWO))
    assert first != second
    assert principal(auth(), ("x-api-key", ONE)).tenant == first


def test_a_tenant_does_not_tell_its_key() -> None:
    tenant = tenant_of(ONE.encode())
    assert tenant == hashlib.sha256(ONE.encode()).hexdigest()[:16]
    assert ONE not in tenant


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", f"Basic {ONE}")],
        [("authorization", ONE)],
        [("authorization", f"Bearer {ONE}x")],
        [("authorization", f"Bearer {ONE[:-1]}")],
        [("authorization", f"Bearer {ONE},{TWO}")],
        [("authorization", f"Bearer {hashlib.sha256(ONE.encode()).hexdigest()}")],
        [("authorization", f"Bearer {tenant_of(ONE.encode())}")],
        [("authorization", "Bearer " + "x" * 100_000)],
        [("authorization", "Bearer kéy-öne-0123456789")],
        [("x-api-key", "")],
        [("x-api-key", TWO[:-1])],
        [("authorization", "Bearer wrong-0123456789"), ("x-api-key", ONE)],
    ],
)
def test_every_wrong_key_is_refused_in_the_same_words(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(Unauthenticated) as caught:
        principal(auth(), *headers)
    assert caught.value.failure == Unauthenticated().failure


def test_without_any_key_configured_nobody_gets_in() -> None:
    with pytest.raises(Unauthenticated):
        principal(Auth(Settings()), ("authorization", f"Bearer {ONE}"))
    with pytest.raises(Unauthenticated):
        principal(Auth(Settings()), ("authorization", "Bearer "))


def test_where_authentication_is_off_everybody_is_the_local_tenant() -> None:
    for headers in ([], [("authorization", "Bearer nonsense")]):
        assert principal(auth(auth="off"), *headers).tenant == "local"
