"""Routes for visitors' files: uploading, reading what was uploaded or made, segments of a stream.

They replace Gradio's own routes, which have no quota and serve more files than these.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import anyio.to_thread
from gradio import Blocks
from gradio.route_utils import GradioMultiPartParser, GradioUploadFile
from gradio.routes import file_upload_statuses
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from avatar.errors import AvatarError, BadInput
from avatar.ui.error_messages import message_of
from avatar.ui.language import language_of
from avatar.ui.routes.request_guard import visitor_of
from avatar.ui.state.app_state import AppState
from avatar.ui.state.stream_segments import StreamSegments
from avatar.ui.state.uploads import TooLarge, Uploads
from avatar.ui.widgets import GuardedBlocks

ARRIVE_S = 900.0  # time limit for an upload to arrive


def file_routes(app_state: AppState, demo: GuardedBlocks) -> list[BaseRoute]:
    """All routes of this module; demo: the page."""
    return [*_upload_routes(demo.uploads, demo), *_segment_routes(app_state.segments, demo)]


def _upload_routes(uploads: Uploads, demo: Blocks) -> list[BaseRoute]:
    """The routes for uploading files and for reading them."""

    async def arrive(request: Request) -> Response:
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            return PlainTextResponse("Content-Length is missing.", 411)
        num_bytes, visitor = int(length), visitor_of(request)
        try:
            await anyio.to_thread.run_sync(uploads.reserve, num_bytes, visitor)
        except AvatarError as error:
            code = 413 if isinstance(error, TooLarge) else 507
            return PlainTextResponse(message_of(error, language_of(request)), code)
        staging = uploads.stage()
        try:
            async with asyncio.timeout(ARRIVE_S):
                paths = await _received(request, staging, uploads)
        except MultiPartException as error:
            return PlainTextResponse(error.message, 413 if "maximum allowed size" in error.message else 400)
        except (ClientDisconnect, TimeoutError):
            return PlainTextResponse("The upload did not arrive in time.", 408)
        finally:
            uploads.release(num_bytes, visitor)
            await anyio.to_thread.run_sync(shutil.rmtree, staging)
        demo.upload_file_set.update(paths)
        return JSONResponse(paths)

    async def show(request: Request) -> Response:
        try:
            path = uploads.find(request.path_params["path"])
        except BadInput as error:
            return PlainTextResponse(message_of(error, language_of(request)), 404)
        return FileResponse(path)

    return [
        Route("/gradio_api/upload", arrive, methods=["POST"]),
        Route("/gradio_api/file={path:path}", show),
    ]


async def _received(request: Request, staging: Path, uploads: Uploads) -> list[str]:
    """Receive a form's files; their paths. Raises: MultiPartException, ClientDisconnect."""
    upload_id = request.query_params.get("upload_id")
    if upload_id is not None:
        file_upload_statuses.track(upload_id)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise MultiPartException("Files come as multipart/form-data.")
    parser = GradioMultiPartParser(
        request.headers,
        request.stream(),  # type: ignore[arg-type]
        max_files=16,
        max_fields=0,  # fields would be kept in memory
        upload_dir=staging,
        max_file_size=uploads.max_file_bytes,
        upload_id=upload_id,
        upload_progress=None if upload_id is None else file_upload_statuses,
    )
    form = await parser.parse()
    paths = []
    for file in form.getlist("files"):
        assert isinstance(file, GradioUploadFile)  # fields are refused
        await file.close()
        paths.append(str(uploads.place(Path(file.file.name), file.filename or "")))
    return paths


def _segment_routes(segments: StreamSegments, demo: Blocks) -> list[BaseRoute]:
    """The routes for a stream's segments."""

    async def segment(request: Request) -> FileResponse:
        session, run = request.path_params["session"], request.path_params["run"]
        component, id = request.path_params["component"], request.path_params["id"]
        stream = demo.pending_streams.get(session, {}).get(run, {}).get(component)
        found = [one for one in stream.segments if one["id"] == id] if stream else []
        if not found or not segments.play(f"{session}/{run}/{component}", found[0]["data"]):
            raise HTTPException(404)
        return FileResponse(found[0]["data"], media_type="video/MP2T", headers={"Cache-Control": "no-store"})

    return [Route("/gradio_api/stream/{session}/{run}/{component:int}/{id}.ts", segment)]
