"""The routes, and what stands around each request: the guard, the log, and errors in one form."""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgevlm.errors import Closed, EdgeVLMError
from edgevlm.generate.answer import Answer
from edgevlm.io.console import note
from edgevlm.serve.answers import Completion
from edgevlm.serve.contract import Asked, read_request
from edgevlm.serve.guard import Body, Gone, Guard
from edgevlm.serve.metrics import CONTENT_TYPE
from edgevlm.serve.pages import Page
from edgevlm.serve.pictures import Fetch
from edgevlm.serve.refusals import Refusal, of_status, refusal_of
from edgevlm.serve.reply import Reply
from edgevlm.serve.service import Service

API = ("/v1/chat/completions", "/v1/models", "/health", "/metrics", "/props")
LOGGED = "edgevlm.said"  # key of a scope: what the log tells of an answer
READERS = 4  # threads that read requests
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"cache-control": b"no-store",
    b"cross-origin-resource-policy": b"same-origin",
}


def make_app(
    service: Service, pages: Mapping[str, Page], fetch: Fetch, failed: Callable[[BaseException], None]
) -> ASGIApp:
    """pages: by path, open to everyone. failed: told of an error of loading."""
    readers = ThreadPoolExecutor(READERS, thread_name_prefix="edgevlm-reader")
    options = service.options

    async def completions(request: Request) -> Any:
        sessions = service.sessions
        if sessions.full:
            raise sessions.busy()
        with Body(request, options, service.budget, sessions.busy) as body:
            data = await body.read()
            loop = asyncio.get_running_loop()
            asked: Asked = await loop.run_in_executor(
                readers, read_request, data, service.names, service.switch, options, fetch
            )
        job = sessions.submit(asked)

        def tell(answer: Answer) -> None:
            timings = answer.timings
            request.scope[LOGGED] = (
                f"{timings.prompt_tokens} ({timings.image_tokens} of pictures, {timings.reused_tokens} held) + "
                f"{timings.answer_tokens} tokens, {answer.finish_reason}"
            )

        return Reply(job, sessions, Completion(service.name, asked.include_usage), tell)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [service.model()]})

    async def model(request: Request) -> Response:
        if (name := request.path_params["name"]) not in service.names:
            raise Refusal(404, f"This server has no model '{name[:100]}'.", param="model", code="model_not_found")
        return JSONResponse(service.model())

    async def health(request: Request) -> Response:
        service.sessions  # noqa: B018 (raises while the model is being loaded)
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    async def props(request: Request) -> Response:
        return JSONResponse(service.props())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async def load() -> None:
            try:
                await asyncio.to_thread(service.open)
            except Closed:
                pass
            except Exception as error:
                failed(error)
            else:
                note(f"{service.name} is ready.")

        loading = asyncio.create_task(load())
        yield
        await asyncio.to_thread(service.close)
        await loading
        await asyncio.to_thread(service.close)  # what was loaded in between
        readers.shutdown(wait=False, cancel_futures=True)

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", completions, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/props", props),
            *(Route(path, page.endpoint) for path, page in pages.items()),
        ],
        exception_handlers={HTTPException: _http, Refusal: _refused, EdgeVLMError: _refused, Exception: _failed},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return _Around(app, Guard(options, ["/health", *pages]), service, [*API, *pages])


def respond(error: Exception) -> Response:
    refusal = refusal_of(error)
    return JSONResponse(refusal.body, refusal.status, headers=refusal.headers)


async def _refused(request: Request, error: Exception) -> Response:
    response = respond(error)
    if response.status_code >= 500 and not isinstance(error, Refusal):
        note(f"Error: {error}")
    return response


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return respond(of_status(error.status_code, error.headers))


async def _failed(request: Request, error: Exception) -> Response:
    return respond(error)


class _Around:
    """The guard before each request, a line of the log behind it. No line has anything of a request's content."""

    def __init__(self, app: ASGIApp, guard: Guard, service: Service, known: list[str]) -> None:
        self._app, self._guard, self._service, self._known = app, guard, service, frozenset(known)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(pair for pair in HEADERS.items() if pair[0] not in names)]
            await send(message)

        try:
            self._guard.check(scope["path"], scope["headers"])
            await self._app(scope, receive, sending)
        except Refusal as refusal:
            await respond(refusal)(scope, receive, sending)
        except Gone:
            status = 499
        except Exception:
            note(traceback.format_exc().rstrip())
        finally:
            self._log(scope, status or 499, time.perf_counter() - started)

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self._known else "other"
        self._service.metrics.requests.labels(path, str(status)).inc()
        client, said = (scope.get("client") or ("-",))[0], scope.get(LOGGED)
        line = f"{client} {scope['method'][:16]} {path} {status} {seconds:.3f} s"
        with contextlib.suppress(OSError):  # whoever read the log is gone, and the server is not
            note(f"{line}, {said}" if said else line)
