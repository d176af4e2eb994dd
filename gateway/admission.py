"""A caller and a request in, an admitted job out, or a refusal: one trip to Redis."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from common.config import Settings
from common.contracts import Job, JsonObject, OnDisconnect, OnInterrupt, Priority, new_job_id
from common.errors import BadRequest, ModelNotFound, QueueFull, StoreUnavailable
from common.queue import Admitted, Queue, Submitted
from gateway.auth import Principal
from gateway.dialects.native import JobOptions
from gateway.dialects.openai import ChatRequest

FULL_RETRY_AFTER_S: Final = 5.0
LONGEST_WAIT_S: Final = 1.8


@dataclass(frozen=True, slots=True)
class Manner:
    """How a route's jobs behave where the caller says nothing."""

    priority: Priority
    on_disconnect: OnDisconnect
    on_interrupt: OnInterrupt
    stream: bool


STREAMED: Final = Manner(Priority.INTERACTIVE, OnDisconnect.CANCEL, OnInterrupt.FAIL, stream=True)
# Nobody sees tokens of these before the end, so an attempt that broke off is simply made again.
WAITED_FOR: Final = Manner(Priority.INTERACTIVE, OnDisconnect.CANCEL, OnInterrupt.RESTART, stream=False)
BACKGROUND: Final = Manner(Priority.STANDARD, OnDisconnect.CONTINUE, OnInterrupt.RESTART, stream=True)


class Admission:
    """Makes jobs of requests and puts them into the queue."""

    def __init__(self, settings: Settings, queue: Queue) -> None:
        self._settings = settings
        self._queue = queue
        self._deadline_ms = {
            Priority.INTERACTIVE: int(settings.interactive_deadline_s * 1000),
            Priority.STANDARD: int(settings.standard_deadline_s * 1000),
            Priority.BATCH: int(settings.batch_deadline_s * 1000),
        }

    def job(
        self,
        principal: Principal,
        chat: ChatRequest,
        options: JobOptions,
        manner: Manner,
        *,
        request_id: str = "",
        metadata: JsonObject | None = None,
    ) -> Job:
        """The job that this request asks for. Raises ModelNotFound, BadRequest."""
        pool = self._settings.pool_by_model.get(chat.model)
        if pool is None:
            raise ModelNotFound(
                f"The model {chat.model[:128]!r} does not exist or you do not have access to it.", param="model"
            )
        self._check_length(chat)
        priority = manner.priority if options.priority is None else options.priority
        return Job(
            id=new_job_id(pool),
            pool=pool,
            tenant=principal.tenant,
            endpoint="/v1/chat/completions",
            model=chat.model,
            body=chat.body,
            priority=priority,
            stream=manner.stream,
            include_usage=chat.include_usage,
            batch_key=options.batch_key,
            # A class's own deadline counts from when the job may begin; a caller's from now, as it says.
            deadline_in_ms=options.deadline_ms or self._deadline_ms[priority] + options.delay_ms,
            delay_ms=options.delay_ms,
            max_attempts=self._settings.max_attempts,
            cost_tokens=chat.cost_tokens,
            prompt_tokens=chat.prompt_tokens,
            on_disconnect=options.on_disconnect or manner.on_disconnect,
            on_interrupt=options.on_interrupt or manner.on_interrupt,
            metadata=metadata or {},
            request_id=request_id,
        )

    def _check_length(self, chat: ChatRequest) -> None:
        limit = self._settings.models[chat.model].max_tokens
        asked = chat.body.get("max_completion_tokens") or chat.body.get("max_tokens")
        if limit is not None and asked is not None and asked > limit:
            raise BadRequest(f"max_tokens: at most {limit} for this model, {asked} were asked for.", param="max_tokens")

    async def admit(self, job: Job, *, gateway: str = "") -> Admitted:
        """The job is in the queue. Raises QueueFull, StoreUnavailable, StoreFull.

        A lost reply is asked for once more: a second submission of the same id changes nothing.
        """
        try:
            async with asyncio.timeout(LONGEST_WAIT_S):
                admitted = await self._submit(job, gateway)
        except TimeoutError:
            raise StoreUnavailable() from None
        if admitted.code is Submitted.FULL:
            text = f"The queue for {job.model!r} is full ({admitted.ahead} jobs wait); try again later."
            raise QueueFull(text, retry_after_s=FULL_RETRY_AFTER_S)
        return admitted

    async def _submit(self, job: Job, gateway: str) -> Admitted:
        try:
            return await self._queue.submit(job, gateway=gateway)
        except StoreUnavailable:
            return await self._queue.submit(job, gateway=gateway)
