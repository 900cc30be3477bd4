"""Routes of files that the page shows by URL: videos, thumbnails, reports; the examples' pictures."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import BaseRoute, Route

from avatar.ui.state.app_state import AppState

KEEP = {"Cache-Control": "private, max-age=86400"}


def routes(app_state: AppState) -> list[BaseRoute]:
    """GET only; a gallery file for those who have its key, the bundled portraits for everybody."""

    async def output(request: Request) -> FileResponse:
        asked, key = request.path_params, request.query_params.get("key", "")
        path = app_state.gallery.file(asked["id"], asked["name"], key)
        if path is None:
            raise HTTPException(404)
        return FileResponse(path, headers=KEEP)

    async def example(request: Request) -> FileResponse:
        number, pairs = request.path_params["number"], app_state.examples.pairs
        if number >= len(pairs):
            raise HTTPException(404)
        return FileResponse(pairs[number].portrait, headers=KEEP)

    return [Route("/outputs/{id}/{name}", output), Route("/examples/{number:int}", example)]
