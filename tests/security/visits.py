"""A visitor without a browser: raw HTTP, any payload, any event of the page."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

LOST = "not found among the uploads"


def generating(portrait: Any = None, speech: Any = None, **settings: Any) -> list[Any]:
    """All inputs of the endpoint /generate, for a program that sends plain HTTP."""
    return [portrait, speech, "auto", "", settings, None, False, "", None, None, None]


class Stranger:
    """Speaks HTTP to a running server. address: what a proxy on this machine says of who it is."""

    def __init__(self, url: str, address: str = "203.0.113.7") -> None:
        self.url, self.address = url, address
        self.session = secrets.token_hex(8)
        self.http = httpx.Client(base_url=url, timeout=120, headers={"X-Forwarded-For": address})
        self.events: list[dict[str, Any]] = self.http.get("/config").json()["dependencies"]

    def upload(self, path: Path, name: str | None = None) -> dict[str, Any]:
        """The payload of an uploaded file."""
        answer = self.http.post("/gradio_api/upload", files={"files": (name or path.name, path.read_bytes())})
        assert answer.status_code == 200, answer.text
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}

    def event(self, part: str, trigger: str) -> int:
        """The number of the page's event of a part, by the part's id in the page."""
        parts = {
            component["id"]: component["props"].get("elem_id")
            for component in self.http.get("/config").json()["components"]
        }
        return next(
            event["id"]
            for event in self.events
            if any(parts.get(target) == part and name == trigger for target, name in event["targets"])
        )

    def defaults(self, number: int) -> list[Any]:
        """The inputs of an event as the page has them at first."""
        values = {
            component["id"]: component["props"].get("value")
            for component in self.http.get("/config").json()["components"]
        }
        event = next(event for event in self.events if event["id"] == number)
        return [values[component] for component in event["inputs"]]

    def place(self, number: int, choice: str) -> int:
        """Which of an event's inputs it is that offers a choice."""
        offered = {
            component["id"]: [value for _, value in component["props"].get("choices") or []]
            for component in self.http.get("/config").json()["components"]
        }
        event = next(event for event in self.events if event["id"] == number)
        return next(place for place, one in enumerate(event["inputs"]) if choice in offered[one])

    def begin(self, number: int, data: list[Any]) -> httpx.Response:
        """Put an event in Gradio's queue."""
        data = [*data, *self.defaults(number)[len(data) :]]  # the rest is as an untouched page has it
        body = {"fn_index": number, "data": data, "session_hash": self.session, "event_data": {"id": "0"}}
        return self.http.post("/gradio_api/queue/join", json=body)

    def heard(self) -> Iterator[dict[str, Any]]:
        """What the queue says, until it has nothing more to say."""
        params = {"session_hash": self.session}
        with self.http.stream("GET", "/gradio_api/queue/data", params=params) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line.removeprefix("data:"))
                    yield message
                    if message["msg"] in ("process_completed", "close_stream", "unexpected_error"):
                        return

    def ask(self, number: int, data: list[Any]) -> str:
        """The whole answer to an event, as text."""
        begun = self.begin(number, data)
        if begun.status_code != 200:
            return begun.text
        return "\n".join(json.dumps(message, ensure_ascii=False) for message in self.heard())

    def call(self, name: str, data: list[Any]) -> str:
        """The whole answer of a named endpoint, as text, the way of curl."""
        begun = self.http.post(f"/gradio_api/call/{name}", json={"data": data})
        if begun.status_code != 200:
            return begun.text
        with self.http.stream("GET", f"/gradio_api/call/{name}/{begun.json()['event_id']}") as stream:
            return "".join(stream.iter_text())

    def close(self) -> None:
        self.http.close()
