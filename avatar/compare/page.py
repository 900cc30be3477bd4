"""A comparison as one self-contained HTML page: its videos play in sync, with the table below."""

from __future__ import annotations

from html import escape
from string import Template
from urllib.parse import quote

from avatar.compare.result import Comparison
from avatar.compare.table import ABOUT, grid, remarks

_PAGE = Template("""<!doctype html>
<!-- Made by Live Avatar -->
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Comparison</title>
<style>
body { font: 16px/1.4 system-ui, sans-serif; margin: 1rem auto; max-width: 90rem; padding: 0 1rem;
  background: #fff; color: #222; }
#videos { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }
figure { margin: 0; } video { width: 100%; background: #000; border: 3px solid transparent; }
figure.heard video { border-color: #4655d8; }
#bar { display: flex; gap: 1rem; align-items: center; position: sticky; bottom: 0; background: inherit;
  padding: .6rem 0; }
#place { flex: 1; } button { font: inherit; padding: .3rem 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
th, td { border: 1px solid #bbb; padding: .3rem .6rem; text-align: left; white-space: nowrap; }
img { max-width: 100%; }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #ddd; } }
</style>
<h1>Comparison</h1>
<div id="videos">$videos</div>
<div id="bar"><button id="play">Play</button>
<input id="place" type="range" min="0" max="1" step="any" value="0" aria-label="Place in the videos">
<output id="time">0.0 s</output></div>
<p>One video is heard at a time: click a video, or press its number, to hear it.</p>
<div class="wide"><table><thead><tr>$heads</tr></thead><tbody>$rows</tbody></table></div>
<ul>$remarks</ul>
$strips
<p>$about</p>
<script>
const videos = [...document.querySelectorAll("video")], play = document.getElementById("play");
const place = document.getElementById("place"), time = document.getElementById("time");
const STEP_S = 0.04;  // a frame: further apart, a video is put back in step
let playing = false;
const clock = () => videos.reduce((a, b) => (a.duration || 0) >= (b.duration || 0) ? a : b);
const hear = (heard) => videos.forEach((video) => {
  video.muted = video !== heard;
  video.parentElement.classList.toggle("heard", video === heard);
});
const seek = (to) => videos.forEach((video) => {
  video.currentTime = Math.min(to, (video.duration || to));
});
const run = (on) => {
  playing = on;
  play.textContent = on ? "Pause" : "Play";
  videos.forEach((video) => on && !video.ended ? video.play() : video.pause());
};
const follow = () => {
  if (!videos.length) return;
  const lead = clock(), now = lead.currentTime;
  videos.forEach((video) => {
    const off = now - video.currentTime, over = now >= video.duration;
    if (playing && video !== lead && !video.seeking && !over && Math.abs(off) > STEP_S) {
      if (Math.abs(off) > 0.3) { video.currentTime = now; video.playbackRate = 1; }
      else video.playbackRate = 1 + Math.max(-0.2, Math.min(0.2, off * 2));
    } else video.playbackRate = 1;
  });
  if (lead.duration && document.activeElement !== place) place.value = now / lead.duration;
  time.textContent = now.toFixed(1) + " s";
  if (lead.ended && playing) run(false);
  requestAnimationFrame(follow);
};
play.onclick = () => {
  if (!playing && videos.length && clock().ended) seek(0);
  run(!playing);
};
place.oninput = () => { seek(place.value * (clock().duration || 0)); };
place.onchange = () => place.blur();
videos.forEach((video) => { video.onclick = () => hear(video); });
document.onkeydown = (event) => {
  if (event.key === " " && event.target !== play) { event.preventDefault(); play.click(); }
  const chosen = videos[Number(event.key) - 1];
  if (chosen) hear(chosen);
};
if (videos.length) { hear(videos[0]); follow(); }
</script></html>
""")


def html(comparison: Comparison) -> str:
    """The whole page. Files are named relative to the comparison's folder."""
    heads, cells = grid(comparison)
    figures = [
        f'<figure><video src="{quote(row.file)}" preload="auto" playsinline muted></video>'
        f"<figcaption>{number}. {escape(row.label)}</figcaption></figure>"
        for number, row in enumerate((row for row in comparison.rows if row.file), 1)
        if row.file
    ]
    strips = [
        f'<figure><img src="{quote(row.seam)}" alt="">'
        f"<figcaption>{escape(row.label)}: around its worst border, the red line</figcaption></figure>"
        for row in comparison.rows
        if row.seam
    ]
    return _PAGE.substitute(
        videos="".join(figures),
        heads="".join(f"<th>{escape(head)}</th>" for head in heads),
        rows="".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in cells),
        remarks="".join(f"<li>{escape(text)}</li>" for text in remarks(comparison)),
        strips="".join(strips),
        about=escape(ABOUT),
    )
