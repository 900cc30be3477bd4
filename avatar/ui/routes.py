"""Files that the page shows by plain address: videos, thumbnails, reports; the examples' pictures."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import BaseRoute, Route

from avatar.ui.studio import Studio

KEEP = {"Cache-Control": "private, max-age=86400"}


def routes(studio: Studio) -> list[BaseRoute]:
    """GET only; nothing but the gallery's entries and the bundled portraits is ever served."""

    async def output(request: Request) -> FileResponse:
        path = studio.gallery.file(request.path_params["id"], request.path_params["name"])
        if path is None:
            raise HTTPException(404)
        return FileResponse(path, headers=KEEP)

    async def example(request: Request) -> FileResponse:
        number, pairs = request.path_params["number"], studio.examples.pairs
        if number >= len(pairs):
            raise HTTPException(404)
        return FileResponse(pairs[number].portrait, headers=KEEP)

    return [Route("/outputs/{id}/{name}", output), Route("/examples/{number:int}", example)]
