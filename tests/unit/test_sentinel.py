"""The URL of a failover group, and what is said of a wrong one."""

from __future__ import annotations

import pytest

from common.config import ConfigError, load
from common.sentinel import Sentinels, check_url, sentinels_of


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("redis+sentinel://a:1,b:2/group/3", Sentinels((("a", 1), ("b", 2)), "group", 3)),
        ("redis+sentinel://a/group", Sentinels((("a", 26379),), "group")),
        ("redis+sentinel://[::1]:5,[::2]/group/", Sentinels((("::1", 5), ("::2", 26379)), "group")),
        (
            "redis+sentinel://me:p%40ss@a:1/g/0?sentinel_username=s&sentinel_password=t%20u",
            Sentinels(
                (("a", 1),),
                "g",
                login={"username": "me", "password": "p@ss"},
                sentinel_login={"username": "s", "password": "t u"},
            ),
        ),
        ("redis+sentinel://:secret@a:1/g", Sentinels((("a", 1),), "g", login={"password": "secret"})),
        (
            "rediss+sentinel://a:1/g?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=true",
            Sentinels((("a", 1),), "g", tls={"ssl_ca_certs": "/etc/ca.pem", "ssl_check_hostname": True}),
        ),
        ("redis://a:1/0", None),
        ("unix:///run/redis.sock", None),
    ],
)
def test_a_url_says_where_the_sentinels_are_and_what_to_tell_them(url: str, meant: Sentinels | None) -> None:
    assert sentinels_of(url) == meant


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://a:1", "must begin with one of redis://"),
        ("localhost:6379", "must begin with one of redis://"),
        ("redis+sentinel://a:1", "the name of the sentinels' service is missing"),
        ("redis+sentinel://a:1,/g", "a sentinel's host is missing"),
        ("redis+sentinel://a:x/g", "the port of a is not a number"),
        ("redis+sentinel://a:70000/g", "the port of a is not a number of the range"),
        ("redis+sentinel://a:1/g/one", "the database is not a number"),
        ("redis+sentinel://a:1/g?ssl_ca_certs=x", "the option 'ssl_ca_certs' is not known"),
        ("redis+sentinel://:secret@a:1/g?timeout=1", "the option 'timeout' is not known"),
    ],
)
def test_a_wrong_url_is_refused_at_the_start_with_the_reason_and_without_its_password(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_url(url)
    with pytest.raises(ConfigError, match=f"HEADRACE_REDIS_URL: .*{why}") as caught:
        load({"HEADRACE_REDIS_URL": url})
    assert "secret" not in str(caught.value)


def test_passwords_stay_out_of_what_is_shown_of_it() -> None:
    shown = repr(sentinels_of("redis+sentinel://me:secret@a:1/g?sentinel_password=secret"))
    assert "secret" not in shown
