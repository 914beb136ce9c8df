"""Images: upload, list, look at, detect again, delete."""

import asyncio
import contextlib
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from starlette.datastructures import UploadFile

from circles.drawing import draw_detections
from circles.errors import CirclesError
from circles.imaging import decode_image, encode_jpeg
from circles.storage.image_records import ImageRecord, Status
from deployments.disconnects import unless_client_leaves
from deployments.middleware import is_head
from deployments.pipeline import Uploaded, detached
from deployments.problems import (
    RequestError,
    internal_problem,
    log_failure,
    problem_document,
    problem_of,
    problem_responses,
    request_id_of,
)
from deployments.schemas import BatchBody, BatchResult, ImageBody, ImageListBody, ImageListItem, ProblemBody
from deployments.services import MinScoreParameter, Services, ServicesParameter
from deployments.threads import in_thread
from deployments.timings import stage
from deployments.uploads import MAX_BATCH_FILES, Upload, open_batch, read_file, read_upload

router = APIRouter(tags=["images"])

COLLECTION_PATH = "/images/"  # the one path that is declared with a slash at its end, as the contract has it

ImageId = Annotated[str, Path(description="SHA-256 of the uploaded bytes")]

_BATCH_AT_ONCE = 4

_BINARY = {"type": "string", "format": "binary"}
_UPLOAD_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["file"], "properties": {"file": _BINARY}},
        },
        "image/*": {"schema": _BINARY},
    },
}
_BATCH_SCHEMA = {
    "type": "object",
    "required": ["files"],
    "properties": {"files": {"type": "array", "items": _BINARY, "minItems": 1, "maxItems": MAX_BATCH_FILES}},
}


@router.post(
    COLLECTION_PATH,
    status_code=201,
    response_model=ImageBody,
    responses={
        200: {"model": ImageBody, "description": "These bytes are here already"},
        202: {"model": ImageBody, "description": "Kept; detection will follow"},
        **problem_responses(400, 408, 413, 415, 422, 429, 503, 507),
    },
    openapi_extra={"requestBody": _UPLOAD_BODY},
)
async def upload_image(
    request: Request,
    services: ServicesParameter,
    min_score: MinScoreParameter,
    prefer: Annotated[str, Header(description="respond-async: answer before detection")] = "",
) -> Response:
    """Stores a picture, detects circles in it, records both, and answers what was found."""
    is_async = "respond-async" in (part.strip().lower() for part in prefer.replace(";", ",").split(","))
    uploaded = await _upload(request, services, is_async)
    headers = {"Location": f"{request.url.path.rstrip('/')}/{uploaded.record.image_id}"}
    if is_async:
        headers["Preference-Applied"] = "respond-async"
    with stage("response"):
        return _json(_status(uploaded), ImageBody.of(uploaded.record, min_score), headers)


@router.post(
    "/images/batch",
    responses=problem_responses(400, 408, 413, 415, 429, 507),
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _BATCH_SCHEMA}}}},
)
async def upload_batch(request: Request, services: ServicesParameter, min_score: MinScoreParameter) -> BatchBody:
    """Stores up to 64 pictures; one bad file never spoils the others."""
    settings = services.settings
    async with contextlib.AsyncExitStack() as opened:
        slot = opened.enter_context(services.admission.enter())
        files = await opened.enter_async_context(
            open_batch(request, slot, settings.max_upload_bytes, settings.upload_timeout_s)
        )
        slot.work()
        more_slots = services.admission.work_at_most(min(len(files), _BATCH_AT_ONCE) - 1)
        for more in more_slots:
            opened.enter_context(more)
        at_once = 1 + len(more_slots)
        work = detached(_batch_results(request, services, min_score, files, at_once, opened.pop_all()))
    return BatchBody(results=await asyncio.shield(work))


@router.get(COLLECTION_PATH, responses=problem_responses(422))
async def list_images(
    services: ServicesParameter,
    min_score: MinScoreParameter,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(description="next_cursor of the page before")] = None,
    status: Annotated[Status | None, Query()] = None,
) -> ImageListBody:
    """Images without their objects, newest first."""
    try:
        page = await in_thread(services.book.page, limit, cursor, status, min_score)
    except ValueError as error:
        raise RequestError(422, "Bad parameter", f"query.cursor: {error}") from error
    return ImageListBody(
        items=[ImageListItem.of(record, min_score, count) for record, count in page.items],
        next_cursor=page.next_cursor,
    )


@router.get("/images/{image_id}", responses=problem_responses(404))
async def get_image(image_id: ImageId, services: ServicesParameter, min_score: MinScoreParameter) -> ImageBody:
    """One image with its objects."""
    record = await in_thread(services.book.get, image_id)
    return ImageBody.of(record, min_score)


@router.delete("/images/{image_id}", status_code=204, responses=problem_responses(404))
async def delete_image(image_id: ImageId, services: ServicesParameter) -> None:
    """Removes file, row and objects."""
    await in_thread(services.book.delete, image_id)


@router.post("/images/{image_id}/detection", responses=problem_responses(404, 429))
async def detect_again(image_id: ImageId, services: ServicesParameter, min_score: MinScoreParameter) -> ImageBody:
    """Detects again with the detector now running."""
    work = detached(_detect_again(services, image_id))
    return ImageBody.of(await asyncio.shield(work), min_score)


@router.get(
    "/images/{image_id}/content",
    response_class=Response,
    responses={
        200: {"content": {"image/*": {}}},
        304: {"description": "Not Modified"},
        307: {"description": "They are at the bucket's address in `Location` (CONTENT_DELIVERY=redirect)"},
        **problem_responses(404),
    },
)
async def get_content(
    request: Request, image_id: ImageId, services: ServicesParameter, if_none_match: Annotated[str, Header()] = ""
) -> Response:
    """The bytes as they were uploaded."""
    record = await in_thread(services.book.get, image_id)
    etag = f'"{record.image_id}"'
    # Bytes under an id never change, so a cache may keep them; only a client's own, since a key may be wanted here.
    headers = {
        "ETag": etag,
        "Cache-Control": "private, max-age=31536000, immutable",
    }
    known = {part.strip().removeprefix("W/") for part in if_none_match.split(",")}
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    if services.settings.content_delivery == "redirect" and not is_head(request.scope):  # addresses are for GET alone
        address = await in_thread(services.book.signed_url, record, services.settings.signed_url_s)
        if address is not None:
            # The signature ends, so the redirection must not outlive it in a cache.
            return RedirectResponse(address, 307, {"Cache-Control": "no-store"})
    headers["Content-Length"] = str(record.size_bytes)
    # A name of ours: what the client called it is in the image's JSON, and nowhere else.
    suffix = record.media_type.removeprefix("image/")
    headers["Content-Disposition"] = f'inline; filename="{record.image_id[:16]}.{suffix}"'
    if is_head(request.scope):  # what the row says; whether the bytes are there, GET finds out
        return Response(media_type=record.media_type, headers=headers)
    pieces = await in_thread(services.book.stream, record)
    return StreamingResponse(pieces, media_type=record.media_type, headers=headers)


@router.get(
    "/images/{image_id}/annotated",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}, **problem_responses(404, 409)},
)
async def get_annotated(
    request: Request, image_id: ImageId, services: ServicesParameter, min_score: MinScoreParameter
) -> Response:
    """The picture with its circles drawn."""
    record = await in_thread(services.book.get, image_id)
    if record.status != "done":
        raise RequestError(409, "Nothing to draw", f"detection in this image is {record.status}")
    jpeg = await unless_client_leaves(request, _draw(services, record, min_score))
    return Response(jpeg, media_type="image/jpeg")


async def _upload(request: Request, services: Services, is_async: bool) -> Uploaded:
    """The request's file, uploaded within the admission's limit; the slot is held until the work ends."""
    slot = services.admission.enter()
    try:
        with stage("receive"):
            upload = await read_upload(
                request, slot, services.settings.max_upload_bytes, services.settings.upload_timeout_s
            )
        slot.work()
    except BaseException:
        slot.release()
        raise
    work = detached(services.pipeline.upload(upload.image_bytes, upload.filename, is_async))
    work.add_done_callback(lambda _: slot.release())
    return await asyncio.shield(work)


async def _detect_again(services: Services, image_id: str) -> ImageRecord:
    """The picture's bytes count as those of an upload do."""
    record = await in_thread(services.book.get, image_id)
    with services.admission.work() as slot:
        slot.hold(record.size_bytes)
        return await services.pipeline.detect_again(record)


async def _batch_results(
    request: Request,
    services: Services,
    min_score: float,
    files: list[UploadFile],
    at_once: int,
    opened: contextlib.AsyncExitStack,
) -> list[BatchResult]:
    """What became of each file.

    Args:
        opened: Files and slots, given back when all is done.
    """
    turn = asyncio.Semaphore(at_once)

    async def result(file: UploadFile) -> BatchResult:
        async with turn:
            return await _batch_result(request, services, min_score, file)

    async with opened:
        return await asyncio.gather(*map(result, files))


async def _batch_result(request: Request, services: Services, min_score: float, file: UploadFile) -> BatchResult:
    filename = file.filename
    instance, request_id = request.url.path, request_id_of(request.scope)
    try:
        upload: Upload = await read_file(file, services.settings.max_upload_bytes)
        filename = upload.filename
        uploaded = await services.pipeline.upload(upload.image_bytes, filename, respond_async=False)
    except RequestError as error:
        document = problem_document(error.status, error.title, error.detail, instance, request_id)
    except CirclesError as error:
        document, _ = problem_of(error, instance, request_id)
    # The net below, as InternalErrorMiddleware is for whole requests: the other files have their answers.
    except Exception as error:  # noqa: BLE001 - it is logged with its traceback
        document = internal_problem(instance, request_id)
        log_failure(request.scope, document, error)
    else:
        image = ImageBody.of(uploaded.record, min_score)
        return BatchResult(filename=filename, status=_status(uploaded), image=image)
    problem = ProblemBody.model_validate(document)
    return BatchResult(filename=filename, status=problem.status, problem=problem)


def _status(uploaded: Uploaded) -> int:
    if not uploaded.is_new:
        return 200
    return 202 if uploaded.record.status == "pending" else 201


async def _draw(services: Services, record: ImageRecord, min_score: float) -> bytes:
    async with services.drawing_turn:
        return await in_thread(_annotated_jpeg, services, record, min_score)


def _annotated_jpeg(services: Services, record: ImageRecord, min_score: float) -> bytes:
    image = decode_image(services.book.load(record), services.settings.max_image_pixels)
    detections = [stored.detection for stored in record.objects if stored.detection.score >= min_score]
    return encode_jpeg(draw_detections(image, detections))


def _json(status: int, body: ImageBody, headers: dict[str, str]) -> Response:
    return Response(body.model_dump_json(), status, headers, "application/json")
