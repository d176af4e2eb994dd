"""What can go wrong, sorted by who must act. Each class's docstring is its default message.

HTTP statuses are not here: `gateway/errors.py` has the one table from code to status, per dialect.
"""

from __future__ import annotations

from typing import ClassVar

from common.contracts import Failure


class HeadraceError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        text = message or (type(self).__doc__ or "").strip()
        super().__init__(text)
        self.failure = Failure(code or self.code, text, param, retry_after_s)


# --- the caller must change something; never retried -----------------------------------------------------------------


class CallerError(HeadraceError):
    """The request cannot be served as it is."""

    code = "invalid_request"


class BadRequest(CallerError):
    """The request is not valid."""

    code = "invalid_request"


class Unauthenticated(CallerError):
    """Incorrect API key provided, or none. Send it as 'Authorization: Bearer <key>' or 'x-api-key: <key>'."""

    code = "invalid_api_key"


class Forbidden(CallerError):
    """This key may not do that."""

    code = "permission_denied"


class NotFound(CallerError):
    """There is nothing here by that name."""

    code = "not_found"


class ModelNotFound(CallerError):
    """The model does not exist or you do not have access to it."""

    code = "model_not_found"


class KeyReused(CallerError):
    """This Idempotency-Key came with another request before."""

    code = "idempotency_key_reused"


class TooLarge(CallerError):
    """The request is larger than this route takes."""

    code = "request_too_large"


class PositionGone(CallerError):
    """That part of the stream is no longer kept."""

    code = "stream_expired"


# --- the caller should come back later -------------------------------------------------------------------------------


class LaterError(HeadraceError):
    """Not now; try again later."""

    code = "server_overloaded"


class QueueFull(LaterError):
    """The queue for this model is full; try again later."""

    code = "queue_full"


class TenantQueueFull(LaterError):
    """Too many of your jobs wait; try again when some have run."""

    code = "tenant_queue_full"


class WaitTooLong(LaterError):
    """The job would not end before its deadline: too much waits already."""

    code = "wait_exceeds_deadline"


class StoreUnavailable(LaterError):
    """The queue's store cannot be reached at the moment; try again shortly."""

    code = "store_unavailable"


class StoreUntouched(StoreUnavailable):
    """The queue's store cannot be reached at the moment, and what was asked of it did certainly not happen."""


class StoreFull(LaterError):
    """The queue's store is out of memory; running work goes on, new work is refused for now."""

    code = "store_full"


class LedgerUnavailable(LaterError):
    """The ledger's database cannot be reached at the moment; try again shortly."""

    code = "ledger_unavailable"


# --- the upstream failed; may be tried elsewhere before the first token -----------------------------------------------


class UpstreamError(HeadraceError):
    """The model's server failed."""

    code = "upstream_error"
    retryable: ClassVar[bool] = True


class UpstreamUnreachable(UpstreamError):
    """The model's server cannot be reached."""

    code = "upstream_unreachable"


class UpstreamTimeout(UpstreamError):
    """The model's server did not answer in time."""

    code = "upstream_timeout"


class UpstreamUnavailable(UpstreamError):
    """None of the model's servers takes a call at the moment."""

    code = "upstream_unavailable"


class UpstreamBusy(UpstreamError):
    """The model's server refuses work at the moment."""

    code = "upstream_busy"


class UpstreamProtocolError(UpstreamError):
    """The model's server sent something that its protocol does not allow."""

    code = "upstream_protocol_error"


class AnswerTooLong(UpstreamProtocolError):
    """The answer is longer than this gateway keeps."""


class UpstreamCredentials(UpstreamError):
    """The model's server refused the gateway's own credentials."""

    code = "upstream_credentials"


class UpstreamRefused(UpstreamError):
    """The model's server refused the request as it is."""

    code = "upstream_refused"
    retryable = False


class UpstreamModelMissing(UpstreamRefused):
    """The model's server does not have this model."""


class UpstreamUnsupported(UpstreamRefused):
    """Servers of this kind cannot do what was asked; none was called."""


class ContextTooLong(UpstreamRefused):
    """The prompt is too long: with the answer asked for, it is longer than the model's context length."""

    code = "context_length_exceeded"


class ContentFiltered(UpstreamRefused):
    """The model's server did not let the prompt through its content filter."""

    code = "content_filter"


class UpstreamInterrupted(UpstreamError):
    """The answer broke off after its first tokens; it can be asked for again."""

    code = "upstream_interrupted"
    retryable = False


# --- we are broken ---------------------------------------------------------------------------------------------------


class InternalError(HeadraceError):
    """Something went wrong on our side."""

    code = "internal_error"


class Fenced(InternalError):
    """This attempt no longer owns its job: its lease passed and another took over."""

    code = "fenced"


class StreamLost(HeadraceError):
    """The stream no longer exists or was rebuilt: what comes later would not fit what came before."""

    code = "stream_lost"
