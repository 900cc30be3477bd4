"""The one table of settings. Flags, form, batch keys, checks and refusals follow from it.

A setting is a field of one of the sections below. Its annotation says everything about it: its type, its
range (pydantic's Field), and how it is offered (Setting). Adding a field here adds it everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from avatar.errors import BadInput

STRICT = ConfigDict(extra="forbid", strict=True, validate_default=False)

WeightDtype = Literal["bf16", "fp8", "int8", "8bit", "fp32"]
RingDtype = Literal["bf16", "fp8", "fp32"]
AttentionDtype = Literal["bf16", "int8"]
TextPlace = Literal["gpu", "cpu", "sharded"]
Decoder = Literal["full", "tiny"]
MotionLevel = Literal["still", "calm", "normal", "lively"]
Upscale = Literal["off", "1080p", "1080p-arnet"]
LayoutName = Literal["local", "layers", "timesteps", "ulysses", "fsdp"]

MOST_FRAMES = 1000  # of a clip
MOST_CLIPS = 1_000_000
MOST_GPUS = 1024

EIGHT_BIT: tuple[WeightDtype, ...] = ("fp8", "int8", "8bit")

LORA_SEPARATOR = ";"  # between several LoRAs

SIZES = ("1280*720", "720*1280", "704*704", "704*384", "688*368", "512*512", "384*256")


@dataclass(frozen=True)
class Widget:
    """The form's field for a setting. kind: Gradio's component. options: passed to it as they are."""

    kind: Literal["Number", "Slider", "Checkbox", "Dropdown"]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """How a setting is offered to users.

    help: for the command line. allowed: its range in words. flag: its flag, where that is not --NAME.
    joined_by: what stands between the values of a flag that may be given several times, "" for one value.
    spellings: further flags of the same meaning. constants: flags that stand for one value. group: the
    heading in --help. widget: None keeps it off the page. refused_by: the engines that cannot honour it,
    each with the reason.
    """

    help: str
    allowed: str = ""
    metavar: str = ""
    flag: str = ""
    joined_by: str = ""
    spellings: tuple[str, ...] = ()
    constants: Mapping[str, str] = field(default_factory=dict)
    group: str = "settings"
    widget: Widget | None = None
    refused_by: Mapping[str, str] = field(default_factory=dict)


NO_CLIPS = {"preview": "it works frame by frame, without clips"}
NO_STEPS = {"preview": "it has no denoising steps"}
NO_MODEL = {"preview": "it has no transformer whose memory could be arranged"}
NO_GPU = {"preview": "it runs on the CPU alone"}
SEVERAL = "several GPUs"


@validated(frozen=True, config=STRICT)
class Generation:
    """What is generated; at most num_clip clips of infer_frames frames, 0: as long as the speech."""

    size: Annotated[
        str,
        Setting(
            "area of the picture, the portrait's shape is kept",
            metavar="W*H",
            widget=Widget("Dropdown", {"choices": list(SIZES), "allow_custom_value": True}),
        ),
    ] = "704*384"
    seed: Annotated[
        int,
        Field(ge=0, lt=2**63),
        Setting(
            "same seed and settings, same video",
            allowed="a whole number from 0 up",
            spellings=("--base_seed",),
            widget=Widget("Number", {"precision": 0, "minimum": 0}),
        ),
    ] = 0
    num_clip: Annotated[
        int,
        Field(ge=0, le=MOST_CLIPS),
        Setting(
            "at most so many clips; 0: all of the speech",
            allowed=f"from 0 (as long as the speech) to {MOST_CLIPS}",
            widget=Widget("Number", {"precision": 0, "minimum": 0}),
            refused_by=NO_CLIPS,
        ),
    ] = 0
    trim: Annotated[
        bool,
        Setting("cut silence from both ends of the speech", widget=Widget("Checkbox")),
    ] = False
    motion: Annotated[
        MotionLevel,
        Setting(
            "how much the person moves: the preview scales head, brows, gaze and mouth; the diffusion model"
            " is asked for it in its prompt, and decides itself what head, hands and mouth do",
            widget=Widget("Dropdown", {"choices": list(get_args(MotionLevel))}),
        ),
    ] = "normal"
    upscale: Annotated[
        Upscale,
        Setting(
            "enlarge the finished video: 1080p by a Lanczos filter, which adds no detail; 1080p-arnet by the"
            " small network of the package pyanime4k, where that is installed",
            widget=Widget("Dropdown", {"choices": list(get_args(Upscale))}),
        ),
    ] = "off"
    infer_frames: Annotated[
        int,
        Field(ge=16, le=MOST_FRAMES, multiple_of=4),
        Setting(
            "frames of a clip, a multiple of 4",
            allowed=f"a multiple of 4 from 16 to {MOST_FRAMES}",
            widget=Widget("Slider", {"minimum": 16, "maximum": 96, "step": 4}),
            refused_by=NO_CLIPS,
        ),
    ] = 48
    sample_steps: Annotated[
        int,
        Field(ge=1, le=8),
        Setting(
            "denoising steps, 1 to 8",
            allowed="from 1 to 8",
            widget=Widget("Slider", {"minimum": 1, "maximum": 8, "step": 1}),
            refused_by=NO_STEPS,
        ),
    ] = 4
    shift: Annotated[
        float,
        Field(ge=0.1, le=20, allow_inf_nan=False),
        Setting(
            "shift of the sampler's timesteps",
            allowed="from 0.1 to 20",
            spellings=("--sample_shift",),
            widget=Widget("Slider", {"minimum": 0.5, "maximum": 12, "step": 0.5}),
            refused_by=NO_STEPS,
        ),
    ] = 3.0
    prompt: Annotated[
        str,
        Setting(
            "what the picture shows and how the person speaks",
            metavar="TEXT",
            refused_by={"preview": "it is driven by the sound alone and reads no prompt"},
        ),
    ] = ""


@validated(frozen=True, config=STRICT)
class Memory:
    """What is loaded, where it lives and in which form. text_encoder: "sharded" is over all GPUs of several.

    weight_dtype: "8bit" is fp8 or int8, by the cards; see planning.weight_format. In these, everything but
    the large matrices stays in bf16. attention_dtype: "int8" is int8 keys by fp8 values, and rings in that
    form whatever ring_dtype is; "bf16" is the residual stream's own dtype, fp32 where weights are. decoder:
    what makes pictures of latents; the portrait is encoded by the full VAE whichever it is.
    """

    enable_online_decode: Annotated[
        bool,
        Setting("decode every block as it comes", widget=Widget("Checkbox"), refused_by=NO_MODEL),
    ] = True
    offload_model: Annotated[
        bool,
        Setting(
            "keep layers in host memory until they are needed", widget=Widget("Checkbox"), refused_by=NO_MODEL
        ),
    ] = False
    weight_dtype: Annotated[
        WeightDtype,
        Setting(
            "of the weights; 8bit: fp8 or int8, whichever the cards multiply faster",
            constants={"--fp8": "fp8"},
            refused_by=NO_MODEL,
        ),
    ] = "bf16"
    ring_dtype: Annotated[RingDtype, Setting("of the attention's rings", refused_by=NO_MODEL)] = "bf16"
    attention_dtype: Annotated[
        AttentionDtype,
        Setting(
            "int8: faster on recent GPUs, with rings in 8 bits, at a small loss",
            refused_by=NO_MODEL,
        ),
    ] = "bf16"
    text_encoder: Annotated[
        TextPlace,
        Setting(
            "where the prompt is encoded; sharded: over all GPUs",
            constants={"--t5_cpu": "cpu", "--t5_fsdp": "sharded"},
            refused_by=NO_MODEL,
        ),
    ] = "gpu"
    decoder: Annotated[
        Decoder,
        Setting(
            "what makes the pictures; tiny: a small network, faster and in less memory, at a loss of detail",
            widget=Widget("Dropdown", {"choices": list(get_args(Decoder))}),
            refused_by=NO_MODEL,
        ),
    ] = "full"
    lora: Annotated[
        str,
        Setting(
            "a LoRA of your own, merged after the official one, with a weight of 1 unless it is given;"
            " may be given several times",
            metavar="FILE[:WEIGHT]",
            joined_by=LORA_SEPARATOR,
            widget=Widget("Dropdown", {"choices": [], "allow_custom_value": True}),
            refused_by=NO_MODEL,
        ),
    ] = ""


@validated(frozen=True, config=STRICT)
class Parallel:
    """How the work is spread over GPUs. decode_gpu: a GPU for the decoder alone."""

    layout: Annotated[
        LayoutName,
        Setting(
            "how one video is spread over GPUs",
            flag="--parallel",
            constants={"--dit_fsdp": "fsdp"},
            group=SEVERAL,
            widget=Widget("Dropdown", {"choices": list(get_args(LayoutName))}),
            refused_by=NO_GPU,
        ),
    ] = "local"
    num_gpus_dit: Annotated[
        int,
        Field(ge=1, le=MOST_GPUS),
        Setting(
            "GPUs for the transformer",
            allowed=f"from 1 to {MOST_GPUS}",
            group=SEVERAL,
            widget=Widget("Number", {"precision": 0, "minimum": 1}),
            refused_by=NO_GPU,
        ),
    ] = 1
    ulysses_size: Annotated[
        int,
        Field(ge=1, le=MOST_GPUS),
        Setting(
            "GPUs that share each item by heads",
            allowed=f"from 1 to {MOST_GPUS}",
            group=SEVERAL,
            widget=Widget("Number", {"precision": 0, "minimum": 1}),
            refused_by=NO_GPU,
        ),
    ] = 1
    decode_gpu: Annotated[
        bool,
        Setting(
            "one more GPU, for decoding alone",
            flag="--enable_vae_parallel",
            group=SEVERAL,
            widget=Widget("Checkbox"),
            refused_by=NO_GPU,
        ),
    ] = False


TYPED = "speech from text"
CaptionPlace = Literal["off", "file", "burned"]


@validated(frozen=True, config=STRICT)
class Speaking:
    """How typed text is spoken. No part of a preset: what an engine gets is the speech."""

    voice: Annotated[
        str,
        Setting(
            "who speaks the text; `python -m avatar voices` lists them",
            metavar="NAME",
            group=TYPED,
            widget=Widget("Dropdown"),
        ),
    ] = "heart"
    speed: Annotated[
        float,
        Field(ge=0.5, le=2.0, allow_inf_nan=False),
        Setting(
            "of the voice: 1 is its own pace, 2 twice as fast",
            allowed="from 0.5 to 2",
            group=TYPED,
            widget=Widget("Slider", {"minimum": 0.5, "maximum": 2.0, "step": 0.05}),
        ),
    ] = 1.0
    captions: Annotated[
        CaptionPlace,
        Setting(
            "the text as captions: in files beside the video (.srt and .vtt), or burned into it as well",
            group=TYPED,
            widget=Widget("Dropdown"),
        ),
    ] = "file"


SHOWN = "who and what of the portrait"
Framing = Literal["head", "shoulders", "half", "whole"]
Aspect = Literal["9:16", "1:1", "16:9", "as-is"]
_FRACTION = r"(0|1|1\.0{1,9}|0?\.[0-9]{1,9})"


@validated(frozen=True, config=STRICT)
class Picture:
    """Who in the portrait speaks, and what of it is shown. No part of a preset: engines get the result.

    face: "" for the largest.
    """

    face: Annotated[
        str,
        Field(pattern=rf"^([1-9][0-9]{{0,2}}|{_FRACTION}, ?{_FRACTION})?$"),
        Setting(
            "which face speaks, where there are several: its number, counted from the left, or a point in it",
            allowed="a number counted from the left, or a point x,y in fractions, like 0.3,0.4",
            metavar="N|X,Y",
            group=SHOWN,
        ),
    ] = ""
    framing: Annotated[Framing, Setting("how much of the person is shown", group=SHOWN)] = "whole"
    aspect: Annotated[
        Aspect, Setting("shape of the picture, width:height; it is extended, never stretched", group=SHOWN)
    ] = "as-is"
    extend: Annotated[
        str,
        Field(pattern="^(blur|#[0-9a-fA-F]{6})$"),
        Setting(
            "what the picture is extended by: its blurred edges, or a colour",
            allowed="blur, or a colour like #20242b",
            metavar="blur|#RRGGBB",
            group=SHOWN,
        ),
    ] = "blur"

    background: Annotated[
        str,
        Setting(
            "what is behind the person: the portrait's own background (keep), that blurred (blur), a colour,"
            " studio green (green), a picture file, or nothing (transparent, to a .webm or .mov)",
            allowed="keep, blur, green, transparent, a colour like #20242b, or a picture",
            metavar="keep|blur|#RRGGBB|green|transparent|FILE",
            group=SHOWN,
        ),
    ] = "keep"

    @property
    def may_extend(self) -> bool:
        """Whether what is shown may reach beyond the portrait."""
        return self.framing != "whole" or self.aspect != "as-is"

    @property
    def demands(self) -> tuple[str, ...]:
        """What of it not every engine can honour; see OTHER_REFUSALS."""
        return ("face",) if self.face and self.framing == "whole" else ()


# What a request may carry besides settings, and not every engine can honour.
OTHER_REFUSALS: Mapping[str, Mapping[str, str]] = {
    "points": {"diffusion": "it works without face points"},
    "head_only": {"diffusion": "its model moves the whole person"},
    "face": {
        "diffusion": "its model moves whoever is seen; with framing, the picture is cropped to that face"
    },
    "pose": {"preview": "it warps one picture, and cannot move a body after a pose"},
    "ckpt_dir": {"preview": "it uses no checkpoint"},
}


@dataclass(frozen=True)
class Declared:
    """A setting as the table declares it. kind: its type; choices: for one of several words."""

    name: str
    section: str
    kind: type
    default: Any
    setting: Setting
    choices: tuple[str, ...] = ()


def _declared(section: str, holder: type) -> Iterable[Declared]:
    hints = get_type_hints(holder, include_extras=True)
    for one in fields(holder):
        hint, *more = get_args(hints[one.name])
        setting = next(part for part in more if isinstance(part, Setting))
        choices = tuple(get_args(hint)) if get_origin(hint) is Literal else ()
        default = getattr(holder(), one.name)
        yield Declared(one.name, section, str if choices else hint, default, setting, choices)


SECTIONS: Mapping[str, type] = {"generation": Generation, "memory": Memory, "parallel": Parallel}
SETTINGS: Mapping[str, Declared] = {
    one.name: one for section, holder in SECTIONS.items() for one in _declared(section, holder)
}
SPEAKING: Mapping[str, Declared] = {one.name: one for one in _declared("speaking", Speaking)}
PICTURE: Mapping[str, Declared] = {one.name: one for one in _declared("picture", Picture)}
FORM: tuple[str, ...] = tuple(name for name, one in SETTINGS.items() if one.setting.widget is not None)


def refusal(engine: str, name: str) -> str:
    """Why an engine cannot honour a setting, or what a request carries besides; empty when it can."""
    reasons = SETTINGS[name].setting.refused_by if name in SETTINGS else OTHER_REFUSALS.get(name, {})
    return reasons.get(engine, "")


def refuse_settings(engine: str, given: Iterable[str]) -> None:
    """Check the settings that a user gave by hand against a preset's engine.

    Raises: BadInput naming the first that it cannot honour, with the reason.
    """
    for name in given:
        if reason := refusal(engine, name):
            raise BadInput(
                f"The {engine} engine cannot honour {name}: {reason}.",
                f"Leave {name} out, or choose a preset with another engine.",
            )
