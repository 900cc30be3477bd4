"""Build a tiny checkpoint with the published file and tensor names and random weights; its videos are noise.

Tests and the self-test run the whole engine on it, through the same loading code as the real checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    UMT5Config,
    UMT5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
)

from avatar.checkpoints.locations import (
    LORA_FILE,
    OFFICIAL,
    SHARD_STEM,
    TINY_DECODER,
    CheckpointLayout,
    tiny_decoder_home,
)
from avatar.checkpoints.transformer_config import ModelConfig
from avatar.geometry import SPEECH_HZ
from avatar.model.text_encoder import NAMES
from avatar.model.transformer import StreamingTransformer
from avatar.model.vae.tiny_decoder import TinyCausalDecoder
from avatar.model.weights.lora import is_target

DTYPE = torch.bfloat16
NUM_SHARDS = 3
LORA_RANK = 4
SPEECH_WIDTH = 24
TEXT = UMT5Config(
    vocab_size=384,
    d_model=48,
    d_kv=16,
    d_ff=96,
    num_heads=4,
    num_layers=2,
    feed_forward_proj="gated-gelu",
)
SPEECH = Wav2Vec2Config(
    hidden_size=SPEECH_WIDTH,
    num_hidden_layers=24,
    num_attention_heads=2,
    intermediate_size=48,
    conv_dim=(16,) * 7,
    conv_bias=True,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
    architectures=["Wav2Vec2ForCTC"],
)
CONFIG = ModelConfig(
    dim=64,
    ffn_dim=160,
    num_heads=2,
    num_layers=3,
    freq_dim=32,
    text_dim=TEXT.d_model,
    audio_dim=SPEECH_WIDTH,
    audio_inject_layers=(0, 2),
)
VAE_WIDTH = 4
TINY_DECODER_WIDTH = 16


def build_tiny_checkpoint(
    folder: Path,
    *,
    config: ModelConfig = CONFIG,
    layout: CheckpointLayout = OFFICIAL,
    seed: int = 0,
    speech: Wav2Vec2Config = SPEECH,
) -> Path:
    """Write base model and LoRA into a folder as `download` would, and return it, for --ckpt_dir."""
    base = folder / layout.repo.split("/")[1]
    for name in (layout.transformer, layout.tokenizer, layout.speech_encoder):
        (base / name).mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        transformer = StreamingTransformer(config)
    _write_transformer(base / layout.transformer, config, random_tensors(transformer, generator))
    _write_text_encoder(base / layout.text_encoder, generator)
    _tokenizer().save(str(base / layout.tokenizer / "tokenizer.json"))
    _write_vae(base / layout.vae, generator)
    _write_speech_encoder(base / layout.speech_encoder, generator, speech)
    lora = folder / "LiveAvatar"
    lora.mkdir(exist_ok=True)
    save_file(lora_tensors(transformer, generator), lora / LORA_FILE)
    _write_tiny_decoder(tiny_decoder_home(folder), generator)
    return folder


def random_tensors(
    model: nn.Module, generator: torch.Generator, dtype: torch.dtype = DTYPE
) -> dict[str, Tensor]:
    """Random values for every tensor of a model, which may be on meta; they keep activations near 1."""
    tensors = {}
    for name, value in model.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim >= 2 and name.endswith(("weight", "original1")) and "norm" not in name:
            noise *= value[0].numel() ** -0.5
        elif name.endswith(("gamma", "original0")) or ("norm" in name and name.endswith("weight")):
            noise = 1 + 0.05 * noise
        else:
            noise *= 0.05
        tensors[name] = noise.to(dtype)
    return tensors


def lora_tensors(model: nn.Module, generator: torch.Generator, rank: int = LORA_RANK) -> dict[str, Tensor]:
    """A LoRA pair for every target of the model, under PEFT's names."""
    tensors = {}
    for name, value in model.state_dict().items():
        if is_target(name, tuple(value.shape)):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            down = torch.randn(rank, value.shape[1], generator=generator) * value.shape[1] ** -0.5
            up = torch.randn(value.shape[0], rank, generator=generator) * 0.01
            tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = (
                down.to(DTYPE),
                up.to(DTYPE),
            )
    return tensors


def write_shards(folder: Path, stem: str, tensors: dict[str, Tensor], num_shards: int) -> None:
    """Write safetensors shards and their index, named as on the hub."""
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for number in range(num_shards):
        file = f"{stem}-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::num_shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _write_transformer(folder: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    published = {
        "_class_name": "WanModel_S2V",
        "model_type": "s2v",
        "adain_mode": "attn_norm",
        "enable_adain": True,
    }
    published |= {
        "enable_framepack": True,
        "framepack_drop_mode": "padd",
        "zero_timestep": True,
        "qk_norm": True,
    }
    (folder / "config.json").write_text(json.dumps(published | vars(config), indent=1))
    write_shards(folder, SHARD_STEM, tensors, NUM_SHARDS)


def _write_text_encoder(path: Path, generator: torch.Generator) -> None:
    with torch.device("meta"):
        model = UMT5EncoderModel(TEXT)
    tensors = random_tensors(model, generator)
    del tensors["encoder.embed_tokens.weight"]
    if path.suffix == ".pth":
        torch.save({_published_text_name(name): value for name, value in tensors.items()}, path)
    else:
        path.mkdir(exist_ok=True)
        TEXT.save_pretrained(path)
        write_shards(path, "model", tensors, 2)


def _published_text_name(name: str) -> str:
    parts = name.split(".")
    layer = parts[2] if name.startswith("encoder.block.") else ""
    for published, ours in NAMES:
        for projection in "qkvo":
            if ours.replace(".N.", f".{layer}.").format(projection) == name:
                return published.replace(".N.", f".{layer}.").format(projection)
    raise KeyError(name)


def _write_vae(path: Path, generator: torch.Generator) -> None:
    with torch.device("meta"):
        model = AutoencoderKLWan(base_dim=VAE_WIDTH)
    tensors = random_tensors(model, generator)
    if path.suffix == ".pth":
        names = convert_wan_vae_to_diffusers({name: name for name in published_vae_names()})
        torch.save({published: tensors[ours] for ours, published in names.items() if ours in tensors}, path)
    else:
        path.mkdir(exist_ok=True)
        model.save_config(path)
        save_file(tensors, path / f"{SHARD_STEM}.safetensors")


def _write_tiny_decoder(folder: Path, generator: torch.Generator) -> None:
    folder.mkdir(exist_ok=True)
    tensors = random_tensors(TinyCausalDecoder(TINY_DECODER_WIDTH), generator, torch.float16)
    torch.save(tensors, folder / TINY_DECODER)


def published_vae_names() -> Iterable[str]:
    """Candidate names for Wan2.1_VAE.pth, a few more than it has: not every block has a shortcut."""
    leaves = [f"residual.{i}.{leaf}" for i in (2, 6) for leaf in ("weight", "bias")]
    leaves += ["residual.0.gamma", "residual.3.gamma", "shortcut.weight", "shortcut.bias"]
    resample = [f"{part}.{leaf}" for part in ("resample.1", "time_conv") for leaf in ("weight", "bias")]
    halves = (("encoder.downsamples", 11, (2, 5, 8)), ("decoder.upsamples", 15, (3, 7, 11)))
    for blocks, num_blocks, resampled in halves:
        for index in range(num_blocks):
            yield from (f"{blocks}.{index}.{leaf}" for leaf in (resample if index in resampled else leaves))
        half = blocks.split(".")[0]
        yield from (f"{half}.middle.{index}.{leaf}" for index in (0, 2) for leaf in leaves)
        yield f"{half}.middle.1.norm.gamma"
        yield f"{half}.head.0.gamma"
        for conv in ("conv1", "middle.1.to_qkv", "middle.1.proj", "head.2"):
            yield from (f"{half}.{conv}.weight", f"{half}.{conv}.bias")
    yield from ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias")


def _write_speech_encoder(folder: Path, generator: torch.Generator, config: Wav2Vec2Config) -> None:
    with torch.device("meta"):
        model = Wav2Vec2ForCTC(config)
    config.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=SPEECH_HZ, do_normalize=True).save_pretrained(folder)
    save_file(random_tensors(model, generator, torch.float32), folder / "model.safetensors")


def _tokenizer() -> Tokenizer:
    """A tokenizer of bytes and ASCII characters with an end token: at least one token per character."""
    vocabulary = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", -9.0),
        *((f"<0x{byte:02X}>", -8.0) for byte in range(256)),
    ]
    vocabulary += [(chr(code), -4.0) for code in range(0x21, 0x7F)] + [("▁", -3.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer
