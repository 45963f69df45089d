"""The thirteen operations: an HTTP request becomes a question to the store, its answer a reply."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from anyio import Path as AsyncPath
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from .records import Batch, File, Refusal
from .requests import (
    MAX_FILE_BYTES,
    MAX_JSON_BYTES,
    MAX_PART_BYTES,
    page_limit,
    parse_json,
    read_completion,
    read_form,
    read_order,
    read_upload_order,
)
from .store import Store, no_file

__all__ = ["OPERATIONS", "Operation"]

#: What may surround the file in a form, in bytes.
_FORM_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the API."""

    method: str
    path: str
    #: Its name in counts and faults: that of the SDK's method.
    name: str
    perform: Callable[[Store, Request], Awaitable[Response]]
    #: Size of the body that it reads, in bytes.
    max_bytes: int = MAX_JSON_BYTES


# --- files


async def _create_file(store: Store, request: Request) -> Response:
    async with request.form() as form:
        upload = _file_field(form, "file")
        purpose, lasts = read_form({k: v for k, v in form.items() if k != "file"})
        create = partial(
            store.create_file,
            upload.file,
            filename=upload.filename or "",
            purpose=purpose,
            expires_after=lasts,
            birth=request.state.birth,
        )
        file = await run_in_threadpool(create)
    return JSONResponse(file.as_json())


async def _list_files(store: Store, request: Request) -> Response:
    query = request.query_params
    limit = page_limit(query.get("limit"), 10_000, 10_000)  # OpenAI API spec, 2026-08
    order = query.get("order", "desc")
    if order not in {"asc", "desc"}:
        message = f"Invalid value: '{order}'. Supported values are: 'asc' and 'desc'."
        raise Refusal(400, message, code="invalid_value", param="order")
    page, more = await run_in_threadpool(
        store.files,
        after=query.get("after"),
        limit=limit,
        purpose=query.get("purpose"),
        ascending=order == "asc",
    )
    return _list(page, more)


async def _retrieve_file(store: Store, request: Request) -> Response:
    file = await run_in_threadpool(store.file, request.path_params["id"])
    return JSONResponse(file.as_json())


async def _delete_file(store: Store, request: Request) -> Response:
    file_id = request.path_params["id"]
    await run_in_threadpool(store.delete_file, file_id)
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


async def _file_content(store: Store, request: Request) -> Response:
    path = await run_in_threadpool(store.open_content, request.path_params["id"])
    return _Content(path, media_type="application/octet-stream")


class _Content(FileResponse):
    """The bytes of a file, or ranges of them. What cannot be had is refused in the envelope."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message | None = None

        async def checked(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                if message["status"] >= 400:
                    sent = Headers(raw=message["headers"])
                    headers = {k: sent[k] for k in ("content-range",) if k in sent}
                    text = "The Range header cannot be satisfied."
                    raise Refusal(message["status"], text, param="range", headers=headers)
                start = message  # sent with the first bytes: until then the file may be gone
                return
            if start is not None:
                await send(start)
                start = None
            await send(message)

        try:
            await super().__call__(scope, receive, checked)
        except (FileNotFoundError, RuntimeError):  # the latter is what starlette makes of it
            path = AsyncPath(self.path)
            if await path.exists():
                raise
            raise no_file(path.name) from None


# --- uploads


async def _create_upload(store: Store, request: Request) -> Response:
    order = read_upload_order(parse_json(await request.body()))
    upload = await run_in_threadpool(store.uploads.create, order)
    return JSONResponse(upload.as_json())


async def _create_part(store: Store, request: Request) -> Response:
    async with request.form() as form:
        content = _file_field(form, "data").file
        upload_id = request.path_params["id"]
        part = await run_in_threadpool(store.uploads.add_part, upload_id, content)
    return JSONResponse(part.as_json())


async def _complete_upload(store: Store, request: Request) -> Response:
    completion = read_completion(parse_json(await request.body()))
    upload_id = request.path_params["id"]
    upload, file = await run_in_threadpool(store.uploads.complete, upload_id, completion)
    return JSONResponse(upload.as_json(file))


async def _cancel_upload(store: Store, request: Request) -> Response:
    upload = await run_in_threadpool(store.uploads.cancel, request.path_params["id"])
    return JSONResponse(upload.as_json())


# --- batches


async def _create_batch(store: Store, request: Request) -> Response:
    order = read_order(parse_json(await request.body()), store.dialect)
    batch = await run_in_threadpool(store.create_batch, order, request.state.birth)
    return JSONResponse(batch.as_json())


async def _list_batches(store: Store, request: Request) -> Response:
    query = request.query_params
    limit = page_limit(query.get("limit"), 20, 100)  # OpenAI API spec, 2026-08
    page, more = await run_in_threadpool(store.batches, after=query.get("after"), limit=limit)
    return _list(page, more)


async def _retrieve_batch(store: Store, request: Request) -> Response:
    batch = await run_in_threadpool(store.batch, request.path_params["id"])
    return JSONResponse(batch.as_json())


async def _cancel_batch(store: Store, request: Request) -> Response:
    batch = await run_in_threadpool(store.cancel, request.path_params["id"])
    return JSONResponse(batch.as_json())


#: All that there is (OpenAI API spec, 2026-08).
OPERATIONS = (
    Operation("POST", "/v1/files", "files.create", _create_file, MAX_FILE_BYTES + _FORM_BYTES),
    Operation("GET", "/v1/files", "files.list", _list_files),
    Operation("GET", "/v1/files/{id}", "files.retrieve", _retrieve_file),
    Operation("DELETE", "/v1/files/{id}", "files.delete", _delete_file),
    Operation("GET", "/v1/files/{id}/content", "files.content", _file_content),
    Operation("POST", "/v1/uploads", "uploads.create", _create_upload),
    Operation(
        "POST",
        "/v1/uploads/{id}/parts",
        "uploads.parts.create",
        _create_part,
        MAX_PART_BYTES + _FORM_BYTES,
    ),
    Operation("POST", "/v1/uploads/{id}/complete", "uploads.complete", _complete_upload),
    Operation("POST", "/v1/uploads/{id}/cancel", "uploads.cancel", _cancel_upload),
    Operation("POST", "/v1/batches", "batches.create", _create_batch),
    Operation("GET", "/v1/batches", "batches.list", _list_batches),
    Operation("GET", "/v1/batches/{id}", "batches.retrieve", _retrieve_batch),
    Operation("POST", "/v1/batches/{id}/cancel", "batches.cancel", _cancel_batch),
)


# --- what they have in common


def _file_field(form: FormData, name: str) -> UploadFile:
    sent = form.get(name)
    if sent is None:
        message = f"Missing required parameter: '{name}'."
        raise Refusal(400, message, code="missing_required_parameter", param=name)
    if not isinstance(sent, UploadFile):
        raise Refusal(400, f"'{name}' must be a file.", code="invalid_type", param=name)
    return sent


def _list(page: Sequence[File | Batch], more: bool) -> JSONResponse:  # noqa: FBT001
    return JSONResponse(
        {
            "object": "list",
            "data": [record.as_json() for record in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": more,
        }
    )
