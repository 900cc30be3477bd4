"""Every word of the page, in English and 简体中文: the one table of both.

Text that Gradio renders is translated by the browser (gr.I18n); text that we render, by the request's
Accept-Language, which browsers send from the same setting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import gradio as gr

from avatar.errors import AvatarError
from avatar.memory.plan import describe

Language = str  # "en" or "zh"

TEXT: dict[str, tuple[str, str]] = {
    # header, hero
    "title": ("Live Avatar", "Live Avatar"),
    "hero": ("Give a portrait a voice.", "让肖像开口说话。"),
    "hero_more": (
        "Add a face and some speech. The video starts to play while the rest is still being made.",
        "放入一张脸和一段语音，视频一边生成，一边播放。",
    ),
    "examples": ("New here? Pick one and it talks", "第一次来？点一个，马上开口"),
    "example_play": ("{portrait} {speech}: play", "播放：{portrait}{speech}"),
    # inputs
    "portrait": ("Portrait", "肖像"),
    "portrait_info": (
        "One face, looking roughly at you. Photo, painting or drawing.",
        "一张大致正对镜头的脸；照片、绘画、卡通都可以。",
    ),
    "speech": ("Speech", "语音"),
    "speech_info": ("A recording, or your own voice.", "一段录音，或者现场录制。"),
    "speech_video": ("Take the sound of a video", "使用视频里的声音"),
    "prompt": ("Prompt", "提示词"),
    "prompt_hint": (
        "A person speaks warmly, in soft window light…",
        "一个人在柔和的窗光下亲切地说话……",
    ),
    # presets
    "presets": ("Quality", "画质预设"),
    "presets_other": ("For other machines ({count})", "适合其他机器的预设（{count}）"),
    "preset_fits": ("Runs here", "本机可用"),
    "preset_lacks": ("Not on this machine", "本机不可用"),
    "preset_auto": ("Picks {title} here", "本机将使用：{title}"),
    "needs": ("Needs", "需要"),
    "gives": ("Gives", "产出"),
    "missing": ("Missing", "缺少"),
    "needs_cpu": ("any CPU", "任意 CPU"),
    "needs_gpus": ("{count} × GPU, {vram} GiB each", "{count} 张显卡，每张 {vram} GiB"),
    "needs_gpu": ("1 GPU with {vram} GiB", "1 张 {vram} GiB 显卡"),
    "needs_ram": ("{ram} GiB RAM", "{ram} GiB 内存"),
    "needs_weights": ("the checkpoint", "模型权重"),
    # settings
    "advanced": ("Advanced settings", "高级设置"),
    "advanced_unused": (
        "Settings that need a GPU are off: the preview has no use for them.",
        "需要显卡的设置已关闭：预览引擎用不到它们。",
    ),
    "size": ("Size (width*height)", "尺寸（宽*高）"),
    "size_info": (
        "The area; the portrait keeps its proportions.",
        "只限定面积，肖像比例不变。",
    ),
    "seed": ("Seed", "随机种子"),
    "seed_info": ("The same seed gives the same video.", "同一种子得到同一段视频。"),
    "num_clip": ("Clips at most", "片段数上限"),
    "num_clip_info": ("0: as long as the speech.", "0：与语音等长。"),
    "infer_frames": ("Frames in a clip", "每个片段的帧数"),
    "sample_steps": ("Sampling steps", "采样步数"),
    "shift": ("Shift", "Shift"),
    "enable_online_decode": ("Decode while sampling", "边采样边解码"),
    "offload_model": ("Offload to host memory", "卸载到主机内存"),
    "num_gpus_dit": ("GPUs for the transformer", "扩散模型使用的显卡数"),
    "ulysses_size": ("Ulysses size", "Ulysses 并行度"),
    "layout": ("Layout", "并行布局"),
    "decode_gpu": ("One more GPU to decode", "另用一张显卡解码"),
    # buttons
    "generate": ("Generate", "生成"),
    "stop": ("Stop", "停止"),
    "download": ("Download video", "下载视频"),
    "replay": ("Watch from the start", "从头播放"),
    # player
    "live": ("Live", "实时"),
    "player": ("Video", "视频"),
    "stage_empty": ("Your video will play here", "视频将在这里播放"),
    "stage_empty_more": (
        "Press Generate, and watch it as it is made.",
        "按下“生成”，边生成边看。",
    ),
    "preview": ("preview", "预览"),
    "preview_why": (
        "Made by the preview engine: quick, on any computer, without the full model.",
        "由预览引擎生成：任何电脑都能快速运行，不使用完整模型。",
    ),
    # status
    "ready": ("Ready", "就绪"),
    "phase_queued": ("In line", "排队中"),
    "phase_loading": ("Loading the engine", "正在加载引擎"),
    "phase_encoding": ("Studying face and voice", "正在分析面部与语音"),
    "phase_generating": ("Generating", "生成中"),
    "phase_finishing": ("Finishing the file", "正在写入文件"),
    "phase_done": ("Done", "完成"),
    "phase_stopped": ("Stopped. What was made is yours to keep.", "已停止，已生成的部分已保存。"),
    "phase_stopped_empty": ("Stopped before the first frame.", "在第一帧之前停止。"),
    "phase_failed": ("It did not work out", "未能完成"),
    "place_next": ("You are next.", "下一个就是您。"),
    "place_second": ("One video is ahead of yours.", "前面还有 1 个视频。"),
    "place": ("{ahead} videos are ahead of yours.", "前面还有 {ahead} 个视频。"),
    "segment_of": ("Segment {n} of {total}", "第 {n}/{total} 段"),
    "fps": ("{fps} fps", "{fps} 帧/秒"),
    "first_frame": ("First frame {s} s", "首帧 {s} 秒"),
    "eta": ("{s} s left", "剩余 {s} 秒"),
    "part_of": ("Part {n} of {total}", "第 {n}/{total} 部分"),
    "parts_kept": ("{n} kept", "已保存 {n} 部分"),
    "elapsed": ("{time} so far", "已用 {time}"),
    "remaining": ("{time} left", "剩余 {time}"),
    "ranks": ("GPUs at work", "各显卡的工作"),
    "rank": ("Rank {rank}", "进程 {rank}"),
    "bottleneck": ("the others wait for it", "瓶颈"),
    "video_length": ("{s} s of video", "视频 {s} 秒"),
    # points
    "points_title": ("Where is the mouth?", "嘴在哪里？"),
    "points_none": (
        "No face was recognised. Drag the seven points onto mouth and chin, then generate.",
        "没有识别出人脸。请把七个点拖到嘴和下巴上，然后生成。",
    ),
    "points_weak": (
        "The face was hard to make out. Please check the seven points, then generate.",
        "这张脸不易辨认。请检查这七个点，然后生成。",
    ),
    "points_keys": (
        "Drag, or choose a point and use the arrow keys.",
        "拖动，或选中一个点后用方向键移动。",
    ),
    "points_bad": (
        "The points are out of order: lips from top to bottom, chin below, left of right.",
        "点的次序不对：上唇在下唇之上，下巴最低，左侧在右侧之左。",
    ),
    "points_head_only": (
        "Skip the points: move the head only, the mouth will not speak",
        "不放置点：只动头部，嘴不会说话",
    ),
    "mouth_left": ("Left corner of the mouth", "左嘴角"),
    "mouth_right": ("Right corner of the mouth", "右嘴角"),
    "inner_lip_top": ("Upper lip, inner edge", "上唇内缘"),
    "inner_lip_bottom": ("Lower lip, inner edge", "下唇内缘"),
    "outer_lip_top": ("Upper lip, outer edge", "上唇外缘"),
    "outer_lip_bottom": ("Lower lip, outer edge", "下唇外缘"),
    "chin": ("Chin", "下巴"),
    # machine
    "machine": ("This machine", "本机"),
    "no_gpu": ("No NVIDIA driver here: the host alone is shown.", "本机没有 NVIDIA 驱动，仅显示主机。"),
    "cpu": ("CPU", "CPU"),
    "ram": ("RAM", "内存"),
    "cores": ("{count} cores", "{count} 核"),
    "ours": ("ours", "本程序"),
    "others": ("others", "其他"),
    "planned": ("planned", "计划"),
    "peak": ("peak", "峰值"),
    "peak_card": ("peak of the whole card", "整卡峰值"),
    "pinned": ("Pinned memory", "锁页内存"),
    "plan": ("Plan", "显存计划"),
    "plan_none": (
        "The preview needs no GPU and about {ram} GiB of RAM.",
        "预览引擎不需要显卡，约需 {ram} GiB 内存。",
    ),
    "plan_of_free": (
        "{need} of {free} GiB free · {total} in all",
        "需 {need} / 空闲 {free} GiB · 共 {total}",
    ),
    "plan_short": ("{short} GiB short", "缺 {short} GiB"),
    "plan_rest": ("all else", "其余"),
    "waiting": ("In pinned host memory until needed: {what}.", "平时放在锁页内存：{what}。"),
    "waiting_layers": ("{count} layers", "{count} 层"),
    "waiting_rings": ("the K/V rings", "K/V 环形缓存"),
    "waiting_models": ("the side models", "辅助模型"),
    "comma": (", ", "、"),
    "plan_estimate": ("Estimated, from the size of every part.", "按各部分大小估算。"),
    "plan_refused": ("This cannot run here.", "本机无法运行。"),
    # notices
    "notices": ("Good to know", "提示"),
    "stepped_down": ("Stepped down.", "已降一级。"),
    # gallery
    "gallery": ("Your videos", "作品"),
    "gallery_empty": (
        "Finished and stopped videos are kept here.",
        "完成和停止的视频会保存在这里。",
    ),
    "gallery_kept": ("Kept for {days} days.", "保留 {days} 天。"),
    "gallery_replay": ("Play", "播放"),
    "gallery_download": ("Download", "下载"),
    "gallery_resume": ("Resume", "继续生成"),
    "gallery_use": ("Use settings", "使用设置"),
    "gallery_delete": ("Delete", "删除"),
    "gallery_confirm": ("Delete for good?", "确定删除？"),
    "account": ("How it was made", "生成报告"),
    "account_file": ("Report as a file (JSON)", "下载报告（JSON）"),
    "speed": ("Speed", "速度"),
    "settings": ("Settings", "设置"),
    "rungs": ("Stepped down", "降级"),
    "rungs_none": ("No: memory was enough.", "无：内存足够。"),
    "at_frame": ("At frame {frame}:", "第 {frame} 帧："),
    "stopped": ("stopped", "已停止"),
    "unfinished": ("unfinished", "未完成"),
    "minutes": ("{min} min", "{min} 分钟"),
    "seconds": ("{s} s", "{s} 秒"),
    "used_settings": ("The settings are filled in.", "设置已填入。"),
    "gone": ("This video is no longer here.", "这个视频已不存在。"),
    # errors
    "no_portrait": ("Choose a portrait first.", "请先选择肖像。"),
    "no_speech": ("Choose or record some speech first.", "请先选择或录制语音。"),
    "fault": (
        "Something went wrong on the server. If it happens again, tell the host this code: {code}",
        "服务器出错。如果再次发生，请把此代码告诉管理员：{code}",
    ),
    "error_AvatarError": ("That did not work", "操作失败"),
    "error_BadInput": ("This cannot be used", "无法使用"),
    "error_WeightsMissing": ("The checkpoint is missing", "缺少模型权重"),
    "error_DoesNotFit": ("It does not fit", "放不下"),
    "error_WorkerLost": ("The engine was lost", "引擎中断"),
    "error_LineFull": ("All places are taken", "队列已满"),
    "line_full": (
        "The line is full: {count} waiting. Please try again in a few minutes.",
        "队列已满：{count} 个视频在等待，请过几分钟再试。",
    ),
    "footer": (
        "Only animate people who agree to it. Nothing leaves this server; uploads are removed after use.",
        "请只为同意的人制作动画。数据不会离开本服务器，上传的文件用后即删。",
    ),
}

# What a preset lacks, by code (memory.fit.Lack); English is the lack's own text.
LACKS: dict[str, str] = {
    "unsupported": "此版本尚不支持这个预设所用的功能。",
    "num_gpus": "需要 {needed} 张 NVIDIA 显卡，每张 {vram_gib:g} GiB；本机有 {found} 张。",
    "unreadable": "显卡 {gpu} 读不出显存。",
    "vram": "显卡 {gpu} 有 {found_gib:.1f} GiB，需要 {needed_gib:g} GiB。",
    "compute_capability": "显卡 {gpu} 的计算能力是 {found}，需要 {needed}。",
    "torch": "这里的 PyTorch 不支持 CUDA（{build}）。",
    "weights": "模型权重不完整。",
    "host_ram": "本机内存 {found_gib:.1f} GiB，需要 {needed_gib:g} GiB。",
    "memory": "{device} 上空闲的不够：需要 {needed_gib:.1f} GiB。",
}

# Notices by code (events.Notice); English is the notice's own text.
NOTICES: dict[str, str] = {
    "head_only": "只有头部会动：嘴不会说话。",
    "weak_face": "这张脸不易辨认，嘴的位置可能不准。",
    "resumed": "继续生成：已完成的部分不再重做。",
    "frames_cut": "语音结束之后多出的帧已略去。",
    "rung_oom": "{device} 显存不足（第 {block} 块）：{rung}由 {was} 改为 {now}，继续生成，画面不丢失。",
    "rung_planned": "按计划放不下：{rung}由 {was} 改为 {now}。",
}

# Rungs of the out-of-memory ladder, as the settings they change.
RUNGS: dict[str, str] = {
    "online_decode": "边采样边解码",
    "infer_frames": "每个片段的帧数",
    "size": "尺寸",
    "sample_steps": "采样步数",
    "offload": "卸载到主机内存",
}

# Items of a plan by name; English is memory.plan.describe's.
ITEMS: dict[str, str] = {
    "transformer_weights": "扩散模型权重",
    "kv_rings": "K/V 环形缓存",
    "condition_kv": "条件 K/V",
    "text_kv": "文本 K/V",
    "activations": "激活值",
    "layer_slots": "层缓冲区",
    "ring_slots": "环形缓存缓冲区",
    "gathered_layers": "汇集的层",
    "communication": "通信缓冲区",
    "audio_injections": "音频注入",
    "embeddings": "嵌入层",
    "window": "注意力窗口",
    "vae_encoder": "VAE 编码器",
    "vae_decoder": "VAE 解码器",
    "speech_states": "语音特征",
    "speech_workspace": "语音编码工作区",
    "decode_pasts": "解码缓存",
    "decode_workspace": "解码工作区",
    "encode_workspace": "编码工作区",
    "speech_encoder": "语音编码器",
    "text_encoder": "文本编码器",
    "cuda_context": "CUDA 上下文",
    "library_workspace": "库工作区",
    "margin": "余量",
    "runtime": "运行环境",
    "loading": "加载",
    "self_test_model": "自检模型",
    "preview_models": "预览模型",
    "frames": "帧",
}


def text(key: str, language: Language, **values: object) -> str:
    """The words of a key, with {names} filled in. Raises: KeyError for an unknown key."""
    words = TEXT[key][1 if language == "zh" else 0]
    return words.format(**values) if values else words


def notice_words(code: str, english: str, values: Mapping[str, object], language: Language) -> str:
    """A notice in the page's language, English where it has no other."""
    if language != "zh" or code not in NOTICES:
        return english
    try:
        return NOTICES[code].format_map({**values, "text": english})
    except KeyError:  # of an earlier version, which told less
        return english


def rung_words(rung: str, code: str, english: str, values: Mapping[str, object], language: Language) -> str:
    """Which rung was taken, and why."""
    name = RUNGS.get(rung, rung) if language == "zh" else rung
    return notice_words(code, english, {**values, "rung": name}, language) or name


def item_words(name: str, language: Language) -> str:
    """An item of a plan."""
    return ITEMS.get(name, describe(name)) if language == "zh" else describe(name)


def language_of(request: gr.Request | None) -> Language:
    """ "zh" when the browser prefers any Chinese over English, else "en"."""
    accepted = "" if request is None else request.headers.get("accept-language", "")
    for choice in sorted(accepted.split(","), key=_weight, reverse=True):
        tag = choice.split(";")[0].strip().lower()[:2]
        if tag in ("en", "zh"):
            return tag
    return "en"


def browser_table() -> gr.I18n:
    """The table for Gradio's own components."""
    english = {key: words[0] for key, words in TEXT.items()}
    chinese = {key: words[1] for key, words in TEXT.items()}
    return gr.I18n(en=english, zh=chinese, **{"zh-CN": chinese, "zh-TW": chinese})


def error_title(error: AvatarError, language: Language) -> str:
    """A toast's heading."""
    key = f"error_{type(error).__name__}"
    return text(key if key in TEXT else "error_AvatarError", language)


def _weight(choice: str) -> float:
    match = re.search(r";\s*q=([\d.]+)", choice)
    return float(match[1]) if match else 1.0
