"""A job's events, to a client: whole, or as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

from edgevlm.errors import EdgeVLMError
from edgevlm.generate.answer import Answer
from edgevlm.serve.answers import DONE, Completion, event
from edgevlm.serve.refusals import Refusal, refusal_of
from edgevlm.serve.sessions import Begun, Job, Sessions, stopping

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


class Reply:
    """An ASGI application that answers one request. A client that goes cancels the answer."""

    def __init__(self, job: Job, sessions: Sessions, completion: Completion, tell: Callable[[Answer], None]) -> None:
        """tell: called with the answer, for the log."""
        self._job, self._sessions, self._completion, self._tell = job, sessions, completion, tell
        self._gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(self._watch(receive))
        try:
            if self._job.asked.stream:
                await self._stream(send)
            else:
                response = JSONResponse(self._completion.whole(await self._whole()))
                await response(scope, receive, send)
        finally:
            watch.cancel()
            self._sessions.cancel(self._job)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._sessions.cancel(self._job)

    async def _whole(self) -> Answer:
        while not isinstance(found := await self._job.next(), Answer):
            if isinstance(found, Exception):
                raise _named(found)
        return self._checked(found)

    def _checked(self, answer: Answer) -> Answer:
        """An answer that was cancelled is none."""
        self._tell(answer)
        if answer.finish_reason == "cancelled":
            raise Refusal(499, "The client closed the connection.", code="client_closed") if self._gone else stopping()
        return answer

    async def _stream(self, send: Send) -> None:
        first = await self._job.next()
        if isinstance(first, Exception):
            raise _named(first)
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for chunk in self._chunks(first):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self, first: Any) -> AsyncIterator[bytes]:
        assert isinstance(first, Begun)
        yield self._completion.first()
        try:
            while not isinstance(found := await self._job.next(), Answer):
                if isinstance(found, Exception):
                    raise found
                assert isinstance(found, str)
                yield self._completion.piece(found)
            yield self._completion.last(self._checked(found))
        except Exception as error:  # too late for a status
            yield event(refusal_of(_named(error)).body) + DONE


def _named(error: Exception) -> Exception:
    """An error of the library with the field of the request that it is about."""
    if not isinstance(error, EdgeVLMError):
        return error
    return refusal_of(error, "response_format" if str(error).startswith("The schema ") else "messages")
