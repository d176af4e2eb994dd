"""The providers' README says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from common.contracts import JsonObject
from common.servers import ROWS, Backend
from tests.providers.fields import FIELDS, table, wire_of
from workers.providers.echo import Script
from workers.providers.registry import KINDS

README = (Path(__file__).parents[2] / "workers" / "providers" / "README.md").read_text(encoding="utf-8")


def _first_column(heading: str) -> list[str]:
    """The names in the first column of the table whose first heading this is."""
    table = README.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    return [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]


def _options() -> dict[str, set[str]]:
    """Each kind's options, as the table of them tells."""
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    table = README.split("| option | kinds |", 1)[1].split("\n\n", 1)[0]
    for line in table.splitlines()[2:]:
        names, kinds = (re.findall(r"`(\w+)`", column) for column in line.split("|")[1:3])
        if "all but" in line.split("|")[2]:
            kinds = [kind for kind in KINDS if kind not in kinds]
        for kind in kinds:
            found[kind] |= set(names)
    return found


def test_every_option_is_listed_and_every_one_that_is_listed_can_be_configured() -> None:
    known = {kind: set(row) for kind, row in ROWS.items()}
    assert _options() | {"echo": set(Script.model_fields)} == known


def test_every_kind_is_listed() -> None:
    assert sorted(_first_column("kind")) == sorted(KINDS)


def _services() -> dict[str, JsonObject]:
    """The services of others by name: what a backend's row says of each."""
    rows = README.split("| service |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    found: dict[str, JsonObject] = {}
    for name, url, options in (map(str.strip, row.strip("|").split(" | ")) for row in rows):
        pieces = re.findall(r"`(\w+: [^`]+)`", options)
        found[name] = {
            "base_url": url.strip("`").removeprefix("none"),
            "options": yaml.safe_load("\n".join(pieces)) or {},
        }
    return found


SERVICES = _services()


@pytest.mark.parametrize("service", SERVICES)
def test_the_row_of_a_service_is_one_that_can_be_configured(service: str) -> None:
    where = Backend(name="b", kind="openai", **SERVICES[service])
    assert where.options.keys() <= set(_first_column("option"))
    assert where.url.startswith("https://")


# What its API names for a chat completion.
MISTRALS = frozenset(
    {
        *("model", "messages", "stream", "n", "stop", "random_seed", "temperature", "top_p", "max_tokens"),
        *("presence_penalty", "frequency_penalty", "response_format", "tools", "tool_choice", "parallel_tool_calls"),
        *("prediction", "reasoning_effort", "prompt_mode", "safe_prompt", "metadata"),
    }
)
# What it can't do, and whoever asks for it should hear so.
BEYOND_MISTRAL = frozenset({"functions", "web_search_options"})


def test_mistral_is_sent_no_wish_that_it_would_refuse() -> None:
    wishes = {"safety_identifier": "s", "prompt_cache_retention": "24h", "prompt_cache_options": {}, "top_logprobs": 2}
    asked = {name: value for name, value in FIELDS.items() if name not in BEYOND_MISTRAL}
    wire = wire_of("openai", {"messages": [], **asked, **wishes}, options=SERVICES["Mistral"]["options"])
    assert wire.keys() <= MISTRALS
    assert wire["random_seed"] == FIELDS["seed"]


def test_what_becomes_of_each_field_is_told_as_it_is() -> None:
    assert table() in README


def test_every_word_of_an_echo_script_is_listed() -> None:
    assert sorted(_first_column("word")) == sorted(Script.model_fields)
