"""HTML of a run report in the gallery: folded, under its video."""

from __future__ import annotations

from html import escape

from avatar.runtime.report import GpuUse, RungTaken, RunReport
from avatar.ui.html import gib, meter, share, tag
from avatar.ui.language import Language, item_words, rung_words, text

NUM_ITEMS = 3  # the largest of a plan


def render_account(report: RunReport, language: Language, url: str, name: str) -> str:
    """How a video was made: speed, settings, plan, peaks, rungs and why. url, name: the report file's."""
    rows = [
        (text("speed", language), escape(_speed(report, language))),
        (text("settings", language), escape(_settings(report, language))),
        *((f"GPU {gpu.index}", _gpu(gpu, report, language)) for gpu in report.gpus),
        (text("ram", language), escape(_host(report, language))),
        (text("rungs", language), _rungs(report, language)),
        *_speakers(report, language),
    ]
    listed = "".join(tag("dt", escape(name)) + tag("dd", inner) for name, inner in rows)
    link = tag("a", escape(text("account_file", language)), href=url, download=name)
    summary = tag("summary", escape(text("account", language)))
    return tag("details", summary + tag("dl", listed) + link, class_="account")


def _speed(report: RunReport, language: Language) -> str:
    fps = "–" if report.frames_per_s is None else f"{report.frames_per_s:.1f}"
    first = "–" if report.first_frame_s is None else f"{report.first_frame_s:.1f}"
    return f"{text('fps', language, fps=fps)} · {text('first_frame', language, s=first)}"


def _settings(report: RunReport, language: Language) -> str:
    made, memory = report.preset["generation"], report.preset["memory"]
    words = [
        report.preset["name"],
        made["size"].replace("*", "×"),
        f"{text('seed', language)} {made['seed']}",
    ]
    if report.preset["engine"] == "diffusion":
        rings = "int8" if memory.get("attention_dtype") == "int8" else memory["ring_dtype"]
        words += [
            f"{text('infer_frames', language)} {made['infer_frames']}",
            f"{text('sample_steps', language)} {made['sample_steps']}",
            f"{text('shift', language)} {made['shift']:g}",
            f"{item_words('transformer_weights', language)} {memory['weight_dtype']}",
            f"{item_words('kv_rings', language)} {rings}",
        ]
        words += [text(name, language) for name in ("enable_online_decode", "offload_model") if memory[name]]
        if memory.get("decoder", "full") != "full":  # reports of earlier versions have none
            words.append(f"{text('decoder', language)} {text('decoder_tiny', language)}")
        parallel = report.preset["parallel"]
        if parallel["layout"] != "local":
            words.append(f"{text('layout', language)} {parallel['layout']}")
    return " · ".join(words)


def _speakers(report: RunReport, language: Language) -> list[tuple[str, str]]:
    """Who spoke, from left to right, where several faces did."""
    said = sorted((one for one in report.speakers if one.speaks), key=lambda one: one.face[0])
    names = ", ".join(str(one.name) for one in said)
    return [(text("speakers", language), escape(names))] if names else []


def _gpu(gpu: GpuUse, report: RunReport, language: Language) -> str:
    """Peak and plan of one GPU, and the largest items of the plan."""
    peak = f"{text('peak', language)} {gib(gpu.peak_bytes)}"
    if gpu.peak_bytes is None and gpu.card_peak_bytes is not None:
        peak = f"{text('peak_card', language)} {gib(gpu.card_peak_bytes)}"
    figures = f"{peak} · {text('planned', language)} {gib(gpu.planned_bytes)} / {gib(gpu.total_bytes)} GiB"
    most = gpu.card_peak_bytes if gpu.peak_bytes is None else gpu.peak_bytes
    bar = tag("i", class_="ours", style=f"width:{share(most, gpu.total_bytes)}")
    if gpu.planned_bytes:
        bar += tag("b", class_="planned", style=f"left:{share(gpu.planned_bytes, gpu.total_bytes)}")
    planned = next((one for one in (report.plan or {"gpus": []})["gpus"] if one["index"] == gpu.index), None)
    items = sorted((planned or {}).get("items", []), key=lambda item: -item["num_bytes"])[:NUM_ITEMS]
    words = " · ".join(f"{item_words(item['name'], language)} {gib(item['num_bytes'])}" for item in items)
    return meter("", figures, bar, tag("small", escape(words)) if words else "")


def _host(report: RunReport, language: Language) -> str:
    memory = report.memory
    words = [
        f"{text('peak', language)} {gib(memory.host_peak_bytes if memory else None)}",
        f"{text('planned', language)} {gib(report.host_planned_bytes)} GiB",
    ]
    if memory and memory.pinned_peak_bytes:
        words.append(f"{text('pinned', language)} {gib(memory.pinned_peak_bytes)} GiB")
    return " · ".join(words)


def _rungs(report: RunReport, language: Language) -> str:
    if not report.rungs:
        return escape(text("rungs_none", language))
    return tag("ol", "".join(tag("li", escape(_rung(taken, language))) for taken in report.rungs))


def _rung(taken: RungTaken, language: Language) -> str:
    why = rung_words(taken.rung, taken.code, taken.why, taken.values, language)
    return why if taken.frame is None else f"{text('at_frame', language, frame=taken.frame)} {why}"
