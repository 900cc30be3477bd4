"""Watch a player from inside the page, and report what was seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Samples every 40 ms: wall clock (s), then the live player's state; -1 where there is no player.
WATCH = """
window.__watch = { samples: [], pressed: null, gauges: [] };
setInterval(() => {
  const v = document.querySelector('#live video');
  const w = performance.now() / 1000;
  if (!v) { window.__watch.samples.push([w, -1]); return; }
  let end = 0;
  for (let i = 0; i < v.buffered.length; i++)
    if (v.buffered.start(i) <= v.currentTime + 0.1) end = Math.max(end, v.buffered.end(i));
  window.__watch.samples.push([w, v.currentTime, end, v.paused ? 1 : 0, v.ended ? 1 : 0,
    v.webkitAudioDecodedByteCount || 0, v.webkitDecodedFrameCount || 0, v.buffered.length]);
}, 40);
new MutationObserver((changes) => {
  if (changes.some((c) => (c.target.parentElement || c.target).closest?.('#gauges')))
    window.__watch.gauges.push(performance.now() / 1000);
}).observe(document.body, { childList: true, subtree: true, characterData: true, attributes: true });
const press = () => { window.__watch.pressed = performance.now() / 1000; };
document.querySelector('#generate').addEventListener('click', press);
"""

SAMPLE_S = 0.04
LATE_S = 0.2  # a sample later than this: the page itself was blocked, which says nothing about the player
AHEAD_S = 0.25  # with this much in the buffer, a player must not stand still


@dataclass
class Playback:
    """What was seen. Times in seconds of wall clock, except for media_s.

    stalls: how long the player stood still each time though it had data; dry_s: how long it had none;
    blocked_s: how far it fell behind while the page itself was blocked.
    """

    first_frame_s: float
    wall_s: float
    media_s: float
    dry_s: float
    blocked_s: float
    audio_bytes: int
    frames: int
    most_ranges: int
    stalls: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        share = 100 * self.media_s / self.wall_s if self.wall_s else 0.0
        return (
            f"first frame {self.first_frame_s:.2f} s after the press; {self.media_s:.2f} s played in "
            f"{self.wall_s:.2f} s ({share:.1f} %); longest stall with data "
            f"{max(self.stalls, default=0):.2f} s; without data {self.dry_s:.2f} s, "
            f"behind a blocked page {self.blocked_s:.2f} s; "
            f"{self.frames} frames, {self.audio_bytes} bytes of audio decoded"
        )


def read_playback(seen: dict[str, Any], duration_s: float) -> Playback:
    """What the samples show, up to a third of a second before the end."""
    samples = [s for s in seen["samples"] if s[1] >= 0 and s[0] >= seen["pressed"]]
    moving = next(i for i, s in enumerate(samples) if s[1] > 0)
    last = next((i for i, s in enumerate(samples) if s[1] >= duration_s - 0.33), len(samples) - 1)
    stalls: list[float] = []
    stood = dry = blocked = 0.0
    for before, now in zip(samples[moving:last], samples[moving + 1 : last + 1]):
        gap, played = now[0] - before[0], now[1] - before[1]
        if played > 0:
            stalls.append(stood)
            stood = 0.0
        elif before[2] - before[1] < AHEAD_S:
            dry += gap
            continue
        if gap >= LATE_S:
            blocked += max(0.0, gap - played)
        elif played <= 0:
            stood += gap
    start, end = samples[moving], samples[last]
    return Playback(
        first_frame_s=start[0] - start[1] - seen["pressed"],
        wall_s=end[0] - start[0],
        media_s=end[1] - start[1],
        dry_s=dry,
        blocked_s=blocked,
        audio_bytes=max(s[5] for s in samples),
        frames=max(s[6] for s in samples),
        most_ranges=max(s[7] for s in samples),
        stalls=[*stalls, stood],
    )
