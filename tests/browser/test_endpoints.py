"""The endpoints for programs, by gradio_client."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import av
import pytest
import soundfile
from gradio_client import Client, exceptions, handle_file
from PIL import Image
from visiting import PORTRAIT, Server, wait_until

HERE = re.escape(str(Path(__file__).parents[2]))
LEAKS = re.compile(rf"Traceback|File \"|/tmp/|/home/|{HERE}|site-packages")


@pytest.fixture(scope="module")
def client(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(server.url, verbose=False, download_files=str(tmp_path_factory.mktemp("client")))


def test_only_the_named_endpoints_are_public(client: Client):
    api = client.view_api(return_format="dict", print_info=False)
    assert set(api["named_endpoints"]) == {
        "/generate",
        "/speak",
        "/voices",
        "/presets",
        "/plan",
        "/gauges",
    }
    assert not api["unnamed_endpoints"]


def test_generate_returns_the_finished_file(client: Client, server: Server, short_speech: Path):
    before = server.videos()
    video = client.predict(
        handle_file(str(PORTRAIT)),
        handle_file(str(short_speech)),
        "auto",
        "",
        {"seed": 7, "size": "256*256"},
        None,
        False,
        api_name="/generate",
    )
    [kept] = [path for path in server.videos() if path not in before]
    assert hashlib.sha256(Path(video).read_bytes()).digest() == hashlib.sha256(kept.read_bytes()).digest()
    wait_until(lambda: not server.leftovers(), "temporary files are gone")


def test_a_text_is_spoken_and_animated(client: Client, server: Server):
    before = server.videos()
    sound, said = client.predict("Hello there. It works.", "heart", 1.0, api_name="/speak")
    assert soundfile.info(sound).duration > 1
    assert [one["text"] for one in said] == ["Hello there.", "It works."]
    given = (handle_file(str(PORTRAIT)), None, "auto", "", {"size": "256*256"}, None, False)
    client.predict(*given, "Hello there. It works.", "heart", 1.5, "file", api_name="/generate")
    [kept] = [path for path in server.videos() if path not in before]
    assert "Hello there." in kept.with_suffix(".vtt").read_text(encoding="utf-8")
    for words, voice, reported in (("你好", "heart", "does not read Han"), ("Hi.", "hart", "Did you mean")):
        with pytest.raises(exceptions.AppError, match=reported):
            client.predict(words, voice, 1.0, api_name="/speak")
    with pytest.raises(exceptions.AppError, match=r"from 0\.5 to 2"):
        client.predict(*given, "Hi.", "heart", 77, "file", api_name="/generate")


def test_a_transparent_video_is_answered_as_webm(client: Client, short_speech: Path, tmp_path: Path):
    given = {"portrait": handle_file(str(PORTRAIT)), "speech": handle_file(str(short_speech))}
    given |= {"settings": {"size": "256*256"}, "api_name": "/generate"}
    video = client.predict(**given, background="transparent")
    with av.open(video) as film:
        assert film.streams.video[0].metadata["ALPHA_MODE"] == "1"
    picture = tmp_path / "sea.png"
    Image.new("RGB", (300, 200), (10, 20, 200)).save(picture)
    video = client.predict(**given, background_picture=handle_file(str(picture)))
    with av.open(video) as film:
        corner = next(film.decode(video=0)).to_ndarray(format="rgb24")[:30, :30].mean((0, 1))
    assert corner == pytest.approx((10, 20, 200), abs=6)
    for bad in (str(picture), "/etc/passwd"):
        with pytest.raises(exceptions.AppError, match="It must be one of: keep, blur"):
            client.predict(**given, background=bad)


def test_a_face_and_framing_are_given_by_name(client: Client, server: Server, short_speech: Path):
    before = server.videos()
    given = {"portrait": handle_file(str(PORTRAIT)), "speech": handle_file(str(short_speech))}
    given |= {"preset": "cpu-preview", "settings": {"size": "256*256"}, "api_name": "/generate"}
    for extra, reported in (
        ({"face": "2"}, r"no face 2 in .*: 1 face"),
        ({"face": "left"}, "face is 'left'"),
        ({"framing": "legs"}, "head, shoulders, half, whole"),
        ({"extend": "red"}, "blur, or a colour"),
    ):
        with pytest.raises(exceptions.AppError, match=reported):
            client.predict(**given, **extra)
    assert server.videos() == before
    video = client.predict(**given, face="1", framing="head", aspect="9:16")
    with av.open(video) as film:
        stream = film.streams.video[0]
        assert stream.width / stream.height == pytest.approx(9 / 16, abs=0.02)


def test_voices_tell_what_they_need(client: Client):
    voices = {voice["name"]: voice for voice in client.predict(api_name="/voices")}
    assert voices["heart"]["fetch_mb"] == 0
    assert voices["kokoro/zf_xiaobei"]["language"] == "zh-CN"


def test_presets_tell_what_is_missing(client: Client):
    presets = {preset["name"]: preset for preset in client.predict(api_name="/presets")}
    assert presets["cpu-preview"]["availability"]["ok"]
    assert presets["auto"]["engine"] == "auto"
    assert presets["80gb"]["requires"]["num_gpus"] == 1


def test_plan(client: Client):
    answer = client.predict("80gb", {"sample_steps": 3}, api_name="/plan")
    assert answer["plan"]["gpus"]
    assert answer["plan"]["gpus"][0]["peak_bytes"] > 10e9
    three = client.predict("80gb", {"sample_steps": 3}, 3, api_name="/plan")
    assert three["plan"]["gpus"][0]["peak_bytes"] > answer["plan"]["gpus"][0]["peak_bytes"]


def test_gauges(client: Client):
    reading = client.predict(api_name="/gauges")
    assert reading["host"]["ram_total_bytes"] > 1e9


@pytest.mark.parametrize(
    ("preset", "settings", "says"),
    [
        ("auto", {"sede": 1}, "seed"),
        ("auto", {"size": "large"}, "size"),
        ("cpu-preview", {"sample_steps": 2}, "sample_steps"),
        ("nonesuch", {}, "nonesuch"),
    ],
)
def test_errors_come_in_words(client: Client, preset, settings, says):
    with pytest.raises(exceptions.AppError) as raised:
        client.predict(preset, settings, api_name="/plan")
    assert says in str(raised.value)
    assert not LEAKS.search(str(raised.value))


def test_files_of_the_server_cannot_be_named(client: Client, server: Server):
    with pytest.raises(Exception) as raised:
        client.predict(
            {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
            {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
            "auto",
            "",
            {},
            None,
            False,
            api_name="/generate",
        )
    assert "root:" not in str(raised.value)
