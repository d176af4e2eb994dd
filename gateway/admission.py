"""A caller and a request in, an admitted job out, or a refusal: one trip to Redis."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from common.config import Settings
from common.contracts import Job, JsonObject, OnDisconnect, OnInterrupt, Priority, new_job_id
from common.errors import (
    BadRequest,
    HeadraceError,
    QueueFull,
    StoreFull,
    StoreUnavailable,
    StoreUntouched,
    WaitTooLong,
)
from common.queue import Admitted, Queue, Submitted
from gateway.auth import Principal
from gateway.dialects.naming import named
from gateway.dialects.native import Asked, JobOptions
from gateway.estimates import Estimates
from gateway.idempotency import fingerprint, key_digest, reused
from gateway.limits import TenantFull
from gateway.models import Models, Picked
from gateway.pressure import Pressure, store_full
from gateway.withdrawal import Withdrawals

UNKNOWN_RETRY_AFTER_S: Final = 5.0
SHORTEST_RETRY_AFTER_S: Final = 1.0
LONGEST_RETRY_AFTER_S: Final = 600.0
FULL_SHARE: Final = 0.1
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

    def __init__(
        self,
        settings: Settings,
        models: Models,
        queue: Queue,
        pressure: Pressure,
        withdrawals: Withdrawals,
        estimates: Estimates,
    ) -> None:
        self._settings = settings
        self._models = models
        self._estimates = estimates
        self._queue = queue
        self._pressure = pressure
        self._withdrawals = withdrawals
        self._many_pools = len(set(settings.pool_by_model.values())) > 1
        self._most_waiting = {
            name: tenant.max_waiting_jobs for name, tenant in settings.tenants.items() if tenant.max_waiting_jobs
        }
        self._deadline_ms = {
            Priority.INTERACTIVE: int(settings.interactive_deadline_s * 1000),
            Priority.STANDARD: int(settings.standard_deadline_s * 1000),
            Priority.BATCH: int(settings.batch_deadline_s * 1000),
        }

    def job(
        self,
        principal: Principal,
        asked: Asked,
        options: JobOptions,
        manner: Manner,
        *,
        request_id: str = "",
        metadata: JsonObject | None = None,
    ) -> Job:
        """The job that this request asks for. Raises ModelNotFound, BadRequest."""
        picked = self._picked(asked, options)
        pool = self._settings.pool_by_model[picked.model]
        priority = manner.priority if options.priority is None else options.priority
        usual_tokens = self._estimates.answer_tokens(picked.model, priority)
        return Job(
            id=new_job_id(pool),
            pool=pool,
            tenant=principal.tenant,
            endpoint=asked.endpoint,
            model=picked.model,
            body=asked.body,
            priority=priority,
            stream=manner.stream and asked.streams,
            include_usage=asked.include_usage,
            batch_key=options.batch_key or asked.batch_key,
            joint=asked.joint,
            # A class's own deadline counts from when the job may begin; a caller's from now, as it says.
            deadline_in_ms=options.deadline_ms or self._deadline_ms[priority] + options.delay_ms,
            delay_ms=options.delay_ms,
            max_attempts=self._settings.max_attempts,
            cost_tokens=asked.cost_tokens(usual_tokens),
            answers=asked.telling(usual_tokens),
            prompt_tokens=asked.prompt_tokens,
            on_disconnect=options.on_disconnect or manner.on_disconnect,
            on_interrupt=options.on_interrupt or manner.on_interrupt,
            metadata=metadata or {},
            request_id=request_id,
            weight=principal.weight,
            idempotency=key_digest(options.idempotency_key) if options.idempotency_key else "",
            fingerprint=_fingerprint(asked, options, manner, metadata) if options.idempotency_key else "",
            dialect=asked.dialect,
            asked=asked.asked,
            choice=picked.choice,
        )

    def _picked(self, asked: Asked, options: JobOptions) -> Picked:
        try:
            return self._models.pick(asked, options.quality or "standard")
        except BadRequest as error:
            raise named(error, asked.dialect) from None

    async def admit(self, job: Job, *, gateway: str = "") -> Admitted:
        """The job is in the queue, or the one that its idempotency key names (`Admitted.job_id`).

        Raises QueueFull, TenantQueueFull, WaitTooLong, KeyReused, StoreUnavailable, StoreFull.

        A lost reply is asked for once more: a second submission of the same id changes nothing. Where the caller is
        refused although the store may have the job, it is withdrawn, unless an idempotency key lets it be found.
        """
        self._pressure.check()
        try:
            async with asyncio.timeout(LONGEST_WAIT_S):
                admitted = await self._submit(job, gateway)
        except StoreUntouched:
            raise
        except (TimeoutError, StoreUnavailable):
            self._withdraw(job)
            raise StoreUnavailable() from None
        except asyncio.CancelledError:
            # Whoever asked has gone meanwhile, and nobody else knows of it.
            if job.on_disconnect is OnDisconnect.CANCEL:
                self._withdraw(job)
            raise
        except StoreFull:
            raise store_full() from None
        if admitted.code not in (Submitted.ACCEPTED, Submitted.DUPLICATE):
            raise refusal_of(admitted, job)
        return admitted

    def _withdraw(self, job: Job) -> None:
        # One that is journaled is accepted all the same, or taken back from the journal.
        if not job.idempotency and not job.journal:
            self._withdrawals.owe(job.id)

    async def _submit_once(self, job: Job, gateway: str) -> Admitted:
        if job.idempotency and self._many_pools:
            # The queue's own note of the key is in the job's pool; another model's pool would not know of it.
            life_ms = job.deadline_in_ms + self._settings.idempotency_retention_s * 1000
            if not await self._queue.same_body(job.tenant, job.idempotency, job.fingerprint, life_ms=life_ms):
                raise reused()
        return await self._queue.submit(job, gateway=gateway, most_waiting=self._most_waiting.get(job.tenant))

    async def _submit(self, job: Job, gateway: str) -> Admitted:
        try:
            return await self._submit_once(job, gateway)
        except StoreUntouched:
            return await self._submit_once(job, gateway)
        except StoreUnavailable as first:
            try:
                return await self._submit_once(job, gateway)
            except StoreUntouched:
                raise first from None


def refusal_of(admitted: Admitted, job: Job) -> HeadraceError:
    """Why a submission was not taken, and when it might be, by the pace at which the queue is worked off."""
    match admitted.code:
        case Submitted.OTHER_BODY:
            return reused()
        case Submitted.TENANT_FULL:
            return TenantFull(admitted, _until_some_have_run(admitted))
        case Submitted.TOO_LATE:
            wait_s, deadline_s = (admitted.wait_ms or 0) / 1000, job.deadline_in_ms / 1000
            text = f"About {wait_s:.0f} s would pass before this job begins, and its deadline is in {deadline_s:.0f} s."
            return WaitTooLong(text, retry_after_s=_bounded((admitted.retry_ms or 0) / 1000))
        case _:
            text = f"The queue for {job.model!r} is full ({admitted.ahead} jobs wait); try again later."
            return QueueFull(text, retry_after_s=_until_some_have_run(admitted))


def _until_some_have_run(admitted: Admitted) -> float:
    """Until a tenth of what is ahead has been worked off: by then there is room for more than the first to ask."""
    if not admitted.wait_ms:
        return UNKNOWN_RETRY_AFTER_S
    return _bounded(admitted.wait_ms / 1000 * FULL_SHARE)


def _bounded(seconds: float) -> float:
    return min(max(seconds, SHORTEST_RETRY_AFTER_S), LONGEST_RETRY_AFTER_S)


def _fingerprint(asked: Asked, options: JobOptions, manner: Manner, metadata: JsonObject | None) -> str:
    """What tells this request from another one with the same key.

    Options that came in headers don't: whoever asks again may have less time left than the first time. But the quality
    does: with another one a virtual model could choose another pool, where nobody knows of the first job. Metadata that
    stands beside the body is the caller's own note of what this is: under another one it is another request.
    """
    quality = (options.quality,) if options.quality else ()
    if manner is not BACKGROUND:
        noted = (metadata,) if metadata else ()
        told = (asked.include_usage, asked.dialect, asked.asked, *quality, *noted)
        return fingerprint(asked.endpoint, manner.stream, asked.body, *told)
    chosen = (options.priority, options.deadline_ms, options.delay_ms, options.batch_key, metadata, *quality)
    return fingerprint(asked.endpoint, True, asked.body, "job", chosen)
