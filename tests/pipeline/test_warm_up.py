"""What is compiled beside loading is not compiled again, and what fails there is not lost."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from avatar.geometry import BLOCK_LATENT_FRAMES, LATENT_CHANNELS, VAE_SPACE_STRIDE, Size
from avatar.model.compile import compiled
from avatar.model.vae import vae as vae_module
from avatar.model.vae.vae import VideoVAE
from avatar.pipeline import pipeline, warm_up
from avatar.pipeline.decode import PRIMING_LATENT_FRAMES, StreamingDecoder
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.pipeline.warm_up import WarmUp
from avatar.preset import load_preset

GOLDEN = Path(__file__).parents[1] / "golden"
CPU, CUDA, SIZE = torch.device("cpu"), torch.device("cuda", 0), Size(64, 48)


@pytest.fixture
def graphs(monkeypatch) -> list[str]:
    """Names of the threads in which a graph was built."""
    built: list[str] = []

    def backend(module, inputs):
        built.append(threading.current_thread().name)
        return module

    monkeypatch.setattr(vae_module, "compiled", partial(compiled, backend=backend))
    monkeypatch.setattr(warm_up, "compiles", lambda device: True)
    return built


def latents(num_frames: int) -> torch.Tensor:
    frame = SIZE.height // VAE_SPACE_STRIDE, SIZE.width // VAE_SPACE_STRIDE
    return torch.randn(LATENT_CHANNELS, num_frames, *frame, generator=torch.Generator().manual_seed(0))


def test_the_first_block_finds_its_graph_built(graphs):
    vae = VideoVAE.load(GOLDEN / "Wan2.1_VAE.tiny.pth", "cpu", torch.float32)
    ahead = WarmUp(CPU)
    ahead.decode(vae, SIZE)
    ahead.wait()
    assert len(graphs) == 1
    assert graphs[0].startswith("warm-up")
    compiled(lambda x: x, backend="eager")  # as the pieces of a run are, in the run's thread
    decoder = StreamingDecoder(vae, compile=True)
    decoder.prime(latents(PRIMING_LATENT_FRAMES))
    for _ in range(2):
        decoder.decode(latents(BLOCK_LATENT_FRAMES))
    assert len(graphs) == 1


def test_a_warm_up_leaves_nothing_in_the_video(graphs):
    vae = VideoVAE.load(GOLDEN / "Wan2.1_VAE.tiny.pth", "cpu", torch.float32)

    def video() -> torch.Tensor:
        decoder = StreamingDecoder(vae, compile=True)
        decoder.prime(latents(PRIMING_LATENT_FRAMES))
        return decoder.decode(latents(BLOCK_LATENT_FRAMES))

    before, ahead = video(), WarmUp(CPU)
    ahead.decode(vae, SIZE)
    ahead.wait()
    assert torch.equal(video(), before)


def test_without_a_compiler_nothing_is_decoded_ahead(monkeypatch):
    monkeypatch.setattr(warm_up, "compiles", lambda device: False)
    ahead = WarmUp(CPU)
    ahead.decode(SimpleNamespace(), SIZE)  # has nothing that could decode
    ahead.wait()


def test_memory_that_runs_out_there_is_reported_by_the_run(monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(warm_up, "compiles", lambda device: True)
    monkeypatch.setattr(warm_up, "StreamingDecoder", full)
    ahead = WarmUp(CPU)
    ahead.decode(SimpleNamespace(), SIZE)
    with pytest.raises(torch.OutOfMemoryError):
        ahead.wait()
    ahead.wait()  # reported once


@pytest.mark.parametrize(
    ("preset", "device", "warms"), [("48gb", CUDA, True), ("48gb", CPU, False), ("self-test", CUDA, False)]
)
def test_only_a_model_that_is_compiled_is_warmed(monkeypatch, preset, device, warms):
    begun = []
    monkeypatch.setattr(pipeline, "WarmUp", begun.append)
    DiffusionPipeline(load_preset(preset)).warm(device)
    assert begun == ([device] if warms else [])


@pytest.mark.parametrize(
    ("online", "on_host", "decodes"), [(True, False, True), (False, False, False), (True, True, False)]
)
def test_it_decodes_ahead_only_where_the_plan_has_room(monkeypatch, online, on_host, decodes):
    """Without online decode the transformer makes way first; with side models on the host memory is short."""
    ahead = SimpleNamespace(sizes=[], decode=lambda source, size: ahead.sizes.append(size))
    monkeypatch.setattr(pipeline, "WarmUp", lambda device: ahead)
    preset = load_preset("48gb").with_settings(enable_online_decode=online)
    source = DiffusionPipeline(preset)
    source.warm(CUDA)
    placement = SimpleNamespace(side_models_on_host=on_host)
    source._warm_decoder(SimpleNamespace(placement=placement, decoder=None), preset, SIZE)
    assert ahead.sizes == ([SIZE] if decodes else [])
