set shell := ["/bin/sh", "-eu", "-c"]
set positional-arguments := true

# Some images forbid Python to keep what it compiled; then every process that a test starts compiles all of it again
export PYTHONDONTWRITEBYTECODE := ""

# Show this list
[private]
default:
    @./just --list --unsorted

# Ask a real little model through the whole stack, and cut and resume its stream: ./just demo "my question"
demo *question:
    @exec .venv/bin/headrace demo "$@"

# Run the whole stack on this machine until Ctrl-C
up *options:
    @exec .venv/bin/headrace up "$@"

# Run every test but benchmarks and storms, two at a time (-n 0: one after the other)
test *options:
    @.venv/bin/python -m pytest -q -n 2 --dist worksteal -m "not slow and not on_redis" "$@" \
        tests --ignore=tests/bench --ignore=tests/chaos

# Run on Debian's Redis what one kind of server is enough to show, and `test` shows on Valkey
redis *options:
    @.venv/bin/python -m pytest -q -n 2 --dist worksteal -m on_redis "$@" tests/store || { \
        [ $? -eq 5 ] && echo 'redis-server is not installed here (Debian: apt-get install redis-server)'; }

# Run the tests that need a minute: unit, store and house, without those marked as lengthy
quick *options:
    @.venv/bin/python -m pytest -q -n 2 --dist worksteal -m "not slow and not lengthy and not on_redis" "$@" \
        tests/unit tests/store tests/house

# Look for mistakes without running anything: lint, format, types, who imports whom
check:
    @.venv/bin/ruff check --quiet .
    @.venv/bin/ruff format --quiet --check .
    @.venv/bin/basedpyright --level error
    @.venv/bin/lint-imports

# Mend what the linter and the formatter can mend
fix:
    @.venv/bin/ruff check --quiet --fix .
    @.venv/bin/ruff format --quiet .

# Make the code of the gRPC contract anew
protos:
    @.venv/bin/python -m tests.support.protos

# Measure, and print each figure beside its method: ./just bench --help
bench *options:
    @.venv/bin/python -m tests.bench "$@"

# Kill, freeze and cut everything at random, at most 10 minutes, and look for what can't have happened: ./just chaos --help
chaos *options:
    @.venv/bin/python -m tests.chaos "$@"

# The same for an hour under a steady load, with rolling restarts, and look for leaks
soak *options:
    @.venv/bin/python -m tests.chaos --soak "$@"

# Ask a real vLLM on the CPU everything that is promised of it; the first call installs it: 2.2 GB, minutes
vllm *options:
    @.venv/bin/python -m tests.real "$@"

# Ask everything through clients that others wrote; the first call installs them (half a minute): ./just clients -k llamacpp
clients *options:
    @.venv/bin/python -m tests.journeys.clients "$@"

# Send 3,000 and more requests that our own OpenAPI document allows or forbids; the first call installs Schemathesis
fuzz *options:
    @.venv/bin/python -m tests.fuzz "$@"

# Resolve the dependencies anew: requirements.lock, deploy/requirements.lock, and the clients'
lock:
    @.venv/bin/uv pip compile --quiet pyproject.toml --extra local --extra dev --generate-hashes --universal \
        --no-header --output-file requirements.lock
    @.venv/bin/uv pip compile --quiet pyproject.toml --constraints requirements.lock --generate-hashes --universal \
        --no-header --output-file deploy/requirements.lock
    @.venv/bin/uv pip compile --quiet tests/fuzz/schemathesis.in --python-version 3.11 --generate-hashes --universal \
        --no-header --output-file tests/fuzz/schemathesis.lock
    @for set in newest older; do \
        .venv/bin/uv pip compile --quiet tests/journeys/clients/apart/$set.in --python-version 3.11 --generate-hashes \
            --universal --no-header --output-file tests/journeys/clients/apart/$set.lock; done
