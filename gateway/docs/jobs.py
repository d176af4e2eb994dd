"""What the routes of our own API say of themselves: a plain prompt, jobs, dead letters."""

from __future__ import annotations

from typing import Final

from gateway.docs.words import (
    EVENT,
    JOB_HEADERS,
    KEY,
    MADE_HEADERS,
    OPENAI_ERROR,
    OPTIONS,
    PAGE,
    PROBLEM,
    STREAM,
    WORK,
    answer,
    body,
    completed,
    header,
    linked,
    path,
    query,
    ref,
    refusals,
    route,
    told,
)

PROMPT: Final = route(
    "Prompt",
    "Ask a question, without ceremony",
    {200: completed("ChatCompletion"), **refusals(PROBLEM, *WORK)},
    requestBody=body("PromptBody", plain={"prompt": "Why is the sky blue?"}),
    parameters=OPTIONS,
    operationId="prompt",
    security=KEY,
)
_EXAMPLE_ID: Final = "job_default_00000000000000000000000000000000"
_OF_JOB: Final = path("job_id", "A job's id.", _EXAMPLE_ID)
_CHAT: Final = {"model": "a-model", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
_ACCEPTED: Final = told(
    answer("Accepted: its id, and where to ask for it.", ref("AcceptedJob")), "Location", "Retry-After", *MADE_HEADERS
)
SUBMIT_JOB: Final = route(
    "Jobs",
    "Submit a job",
    {
        202: linked(_ACCEPTED, "job_id", "/id", "getJob", "cancelJob", "followJob"),
        **refusals(OPENAI_ERROR, *WORK),
    },
    requestBody=body(
        "JobBody",
        chat={"endpoint": "/v1/chat/completions", "body": _CHAT, "priority": "batch"},
        embeddings={"endpoint": "/v1/embeddings", "body": {"model": "a-model", "input": "a text"}},
    ),
    parameters=OPTIONS,
    operationId="submitJob",
    security=KEY,
)
JOBS: Final = route(
    "Jobs",
    "List your jobs, the newest first",
    {200: linked(answer("Jobs.", ref("Jobs")), "job_id", "/data/0/id", "getJob"), **refusals(OPENAI_ERROR, 400, 401)},
    parameters=PAGE,
    operationId="listJobs",
    security=KEY,
)
JOB: Final = route(
    "Jobs",
    "A job",
    {200: told(answer("The job.", ref("Job")), "Retry-After"), **refusals(OPENAI_ERROR, 401, 404)},
    parameters=[_OF_JOB],
    operationId="getJob",
    security=KEY,
)
CANCEL_JOB: Final = route(
    "Jobs",
    "Cancel a job",
    {200: answer("The job.", ref("Job")), **refusals(OPENAI_ERROR, 401, 404)},
    parameters=[_OF_JOB],
    operationId="cancelJob",
    security=KEY,
)
_EVENTS: Final = answer("Chunks as server-sent events, ended by `data: [DONE]`.", EVENT, STREAM)
_POSITION: Final = {"type": "string", "pattern": "^([0-9]{1,16}-[0-9]{1,10})?$"}
JOB_EVENTS: Final = route(
    "Jobs",
    "Follow a job's tokens, from any place in them",
    {
        200: told(_EVENTS, *JOB_HEADERS),
        204: {"description": "The job has ended and there is nothing after this position: do not come back."},
        **refusals(OPENAI_ERROR, 400, 401, 404, 410),
    },
    parameters=[
        _OF_JOB,
        header("Last-Event-ID", "The last `id` that was seen; what comes after it is sent.", _POSITION),
        query("last_event_id", "The same, for who can set no headers.", _POSITION),
    ],
    operationId="followJob",
    security=KEY,
)
DEAD_LETTERS: Final = route(
    "Dead letters",
    "Your jobs whose attempts were used up, the newest first",
    {
        200: linked(
            answer("Dead letters.", ref("DeadLetters")), "job_id", "/data/0/id", "getDeadLetter", "replayDeadLetter"
        ),
        **refusals(OPENAI_ERROR, 400, 401),
    },
    parameters=[*PAGE, query("pool", "Only those of this pool.", {"type": "string"})],
    operationId="listDeadLetters",
    security=KEY,
)
_OF_LETTER: Final = path("job_id", "The dead job's id.", _EXAMPLE_ID)
DEAD_LETTER: Final = route(
    "Dead letters",
    "A dead letter: its request, its reason, and each attempt's error",
    {200: answer("The dead letter.", ref("DeadLetter")), **refusals(OPENAI_ERROR, 401, 404)},
    parameters=[_OF_LETTER],
    operationId="getDeadLetter",
    security=KEY,
)
REPLAY: Final = route(
    "Dead letters",
    "Run a dead letter anew",
    {
        202: {**_ACCEPTED, "description": "The new job; asked again, the same one."},
        **refusals(OPENAI_ERROR, 401, 404, 429, 503),
    },
    parameters=[_OF_LETTER],
    operationId="replayDeadLetter",
    security=KEY,
)
