"""A comparison as one self-contained HTML page: its videos play in sync, with the table below."""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

from avatar.compare.result import Comparison
from avatar.compare.table import ABOUT, grid, remarks

IN_STEP = Path(__file__).with_name("in_step.js")  # defines playInStep(root, words)

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
<div id="bar"><button id="play" data-step="play">Play</button>
<input id="place" data-step="place" type="range" min="0" max="1" step="any" value="0"
  aria-label="Place in the videos">
<output data-step="time">0.0 s</output></div>
<p>One video is heard at a time: click a video, or press its number, to hear it.</p>
<div class="wide"><table><thead><tr>$heads</tr></thead><tbody>$rows</tbody></table></div>
<ul>$remarks</ul>
$strips
<p>$about</p>
<script>$script
playInStep(document.body);
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
        script=IN_STEP.read_text(encoding="utf-8"),
    )
