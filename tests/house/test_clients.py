"""README's table of clients names the versions that `./just clients` installs."""

from __future__ import annotations

import re

import pytest

from tests.house.source import ROOT

APART = ROOT / "tests" / "journeys" / "clients" / "apart"
PIN = re.compile(r"^([a-z0-9._-]+)==(\d+\.\d+)", re.MULTILINE)
ROW = re.compile(r"^\| (?:OpenAI|Anthropic|Ollama) \|.*\| (.*) \|$", re.MULTILINE)
NAMED = {
    "openai": r"openai \(Python ([\d., ]+)",
    "anthropic": r"anthropic \(Python ([\d., ]+)",
    "ollama": r"ollama \(Python ([\d., ]+)",
    "langchain-openai": r"langchain-openai ([\d.]+)",
    "langchain-anthropic": r"langchain-anthropic ([\d.]+)",
    "langchain-ollama": r"langchain-ollama ([\d.]+)",
    "llama-index-llms-openai-like": r"llama-index-llms-openai-like ([\d.]+)",
    "llama-index-llms-openai": r"llms-openai-like [\d.]+, -openai ([\d.]+)",
    "pydantic-ai-slim": r"pydantic-ai ([\d.]+)",
    "instructor": r"instructor ([\d.]+)",
    "litellm": r"LiteLLM ([\d.]+)",
}


@pytest.mark.parametrize("package", NAMED)
def test_a_clients_versions_in_the_readme_are_those_of_the_locks(package: str) -> None:
    told = re.search(NAMED[package], "\n".join(ROW.findall((ROOT / "README.md").read_text())))
    assert told is not None, f"README names no version of {package}"
    locked = {
        found[1] for file in APART.glob("*.lock") for found in PIN.findall(file.read_text()) if found[0] == package
    }
    assert set(re.split(r"[, ]+", told[1].strip(", "))) == locked
