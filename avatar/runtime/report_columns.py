"""A run's report as a row of a table that compares runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from avatar.request import KEEP
from avatar.runtime.report import RunReport


def row(report: RunReport) -> dict[str, Any]:
    """A run's columns for programs; None for what was not measured."""
    memory = report.memory
    return {
        "preset": report.preset["name"],
        "configuration": configuration(report),
        "gpus": [asdict(gpu) for gpu in report.gpus],
        "host_peak_bytes": memory.host_peak_bytes if memory else None,
        "host_planned_bytes": report.host_planned_bytes,
        "pinned_peak_bytes": memory.pinned_peak_bytes if memory else None,
        "out_of_memory": report.out_of_memory,
        "average_fps": report.frames_per_s,
        "first_frame_s": report.first_frame_s,
        "rungs": [asdict(taken) for taken in report.rungs],
        "motion": report.preset["generation"].get("motion", "normal"),
        "background": report.background_picture or report.background,
        "pose": report.pose,
        "upscaled": asdict(report.upscaled) if report.upscaled else None,
        "num_frames": report.num_frames,
        "frames_asked": report.frames_asked,
        "stopped": report.stopped,
        "error": report.error,
    }


def kept_rings(memory: Mapping[str, Any]) -> str:
    """The dtype of a run's rings, by its report's settings; older reports have no attention_dtype."""
    return "int8" if memory.get("attention_dtype") == "int8" else memory["ring_dtype"]


def configuration(report: RunReport) -> str:
    """ "704*384, 48 frames, 4 steps, fp8 weights, bf16 rings, online decode" """
    made, memory = report.preset["generation"], report.preset["memory"]
    words = [made["size"]]
    if report.preset["engine"] == "diffusion":
        words += [f"{made['infer_frames']} frames", f"{made['sample_steps']} steps"]
        words += [f"{memory['weight_dtype']} weights", f"{kept_rings(memory)} rings"]
        words += ["online decode"] if memory["enable_online_decode"] else []
        words += ["offload"] if memory["offload_model"] else []
        words += ["tiny decoder"] if memory.get("decoder") == "tiny" else []  # earlier versions have none
        parallel = report.preset["parallel"]
        if parallel["layout"] != "local":
            decoder = " + 1" if parallel["decode_gpu"] else ""
            words.append(f"{parallel['layout']} on {parallel['num_gpus_dit']}{decoder} GPUs")
    motion = made.get("motion", "normal")  # reports of earlier versions have none
    words += [] if motion == "normal" else [f"{motion} motion"]
    words += (
        [] if report.background == KEEP else [f"background {report.background_picture or report.background}"]
    )
    words += [f"pose {report.pose}"] if report.pose else []
    words += [f"upscaled by {report.upscaled.by}"] if report.upscaled else []
    return ", ".join(words)


def out_of_memory(report: RunReport) -> str:
    """ "no", "yes, failed", "yes, went on", or "?" for a run that was lost."""
    if report.out_of_memory is None:
        return "?"
    if not report.out_of_memory:
        return "no"
    return "yes, failed" if report.error else "yes, went on"
