"""Gradio's own protocol by hand: call any handler of the page, in any session, with any payload."""

from __future__ import annotations

import json
from typing import Any

import httpx


class Wire:
    """One session. With a page's session_hash, this acts as that page."""

    def __init__(self, url: str, session_hash: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=120)
        self.session = session_hash
        self.config = self.http.get("/config").json()

    def handler(self, element: str, event: str) -> dict[str, Any]:
        """The handler of an element's event; element "": of the page's own."""
        ids = [one["id"] for one in self.config["components"] if one["props"].get("elem_id") == element]
        return next(
            one
            for one in self.config["dependencies"]
            if any(on == event and (id in ids or not element) for id, on in one["targets"])
        )

    def call(self, handler: dict[str, Any], data: Any, event_data: Any = None) -> dict[str, Any]:
        """A handler's last message, as the browser gets it; {"refused": text} if refused before the queue."""
        body = {
            "data": data,
            "event_data": event_data,
            "fn_index": handler["id"],
            "session_hash": self.session,
            "trigger_id": (handler["targets"] or [[None]])[0][0],
        }
        return self.post(json.dumps(body))

    def post(self, body: str | bytes) -> dict[str, Any]:
        asked = self.http.post(
            "/gradio_api/queue/join", content=body, headers={"content-type": "application/json"}
        )
        if asked.status_code != 200:
            return {"refused": asked.text, "status": asked.status_code}
        with self.http.stream(
            "GET", "/gradio_api/queue/data", params={"session_hash": self.session}
        ) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line.removeprefix("data:"))
                if message["msg"] in ("process_completed", "unexpected_error", "close_stream"):
                    return message
        return {"refused": "the stream ended"}

    def upload(self, content: bytes, name: str) -> dict[str, Any]:
        """A file's payload, as the page makes it."""
        answer = self.http.post("/gradio_api/upload", files={"files": (name, content)})
        answer.raise_for_status()
        return {"path": answer.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}
