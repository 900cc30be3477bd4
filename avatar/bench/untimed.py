"""Settings that `bench` cannot honour: it makes its own speech, and no video that anybody watches."""

from __future__ import annotations

from collections.abc import Iterable

from avatar.errors import BadInput

UNTIMED = {
    "num_clip": "--blocks says how much is generated",
    "trim": "its speech is made up, and has no silence to cut",
    "upscale": "it times the model, and no video is kept that could be enlarged",
}
WITHOUT_WEIGHTS = {
    "prompt": "no prompt is read: one is made up, and --prompt_tokens N makes it as long as N tokens",
    "motion": "no prompt is read that could ask for it",
    "text_encoder": "there is no prompt encoder (--t5_cpu and --t5_fsdp are flags of it)",
    "lora": "there is no checkpoint that it could be merged into",
}


def refuse_untimed(given: Iterable[str], random_weights: bool) -> None:
    """Check the names of the settings that a user gave. Raises: BadInput for the first that has no effect."""
    for name in given:
        if name in UNTIMED:
            raise BadInput(f"bench cannot honour {name}: {UNTIMED[name]}.", f"Leave {name} out.")
        if random_weights and name in WITHOUT_WEIGHTS:
            text = f"With --random_weights bench cannot honour {name}: {WITHOUT_WEIGHTS[name]}."
            raise BadInput(text, f"Leave {name} out.")
