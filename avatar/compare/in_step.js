// The videos below `root` as one: one button, one place, the sound of one. It stops when root has left the page.
// root holds videos, each in a <figure>, and by data-step: "play", a button; "place", a range from 0 to 1; "time", where
// they are; perhaps "hear" in a figure, a button. words: of the play button. Space plays and pauses, a number hears.
function playInStep(root, words = { play: "Play", pause: "Pause" }) {
  const stepS = 0.015;  // less than half a frame: further apart, a silent video is put in step with the heard one
  const videos = [...root.querySelectorAll("video")];
  const [play, place, time] = ["play", "place", "time"].map((part) => root.querySelector(`[data-step=${part}]`));
  if (!videos.length) return;
  let playing = false, held = false, heard = videos[0];
  const clock = () => videos.reduce((a, b) => (a.duration || 0) >= (b.duration || 0) ? a : b);
  const lead = () => heard.ended ? clock() : heard;
  const hear = (chosen) => videos.forEach((video) => {
    heard = chosen;
    const figure = video.closest("figure");
    video.muted = video !== heard;
    figure.classList.toggle("heard", video === heard);
    figure.querySelector("[data-step=hear]")?.setAttribute("aria-pressed", String(video === heard));
  });
  const seek = (to) => videos.forEach((video) => { video.currentTime = Math.min(to, video.duration || to); });
  const run = (on) => {
    playing = on;
    play.textContent = on ? words.pause : words.play;
    videos.forEach((video) => on && !video.ended ? video.play() : video.pause());
    if (!on && !lead().ended) seek(lead().currentTime);
  };
  const follow = () => {
    if (!root.isConnected) return;
    const now = lead().currentTime, whole = clock().duration;
    videos.forEach((video) => {
      const off = now - video.currentTime, over = now >= video.duration;
      if (playing && video !== lead() && !video.seeking && !over && Math.abs(off) > stepS) {
        if (Math.abs(off) > 0.3) { video.currentTime = now; video.playbackRate = 1; }
        else video.playbackRate = 1 + Math.max(-0.2, Math.min(0.2, off * 3));
      } else video.playbackRate = 1;
    });
    if (whole && !held) place.value = now / whole;
    time.textContent = now.toFixed(1) + " s";
    if (playing && clock().ended) run(false);
    requestAnimationFrame(follow);
  };
  play.onclick = () => {
    if (!playing && clock().ended) seek(0);
    run(!playing);
  };
  place.oninput = () => seek(place.value * (clock().duration || 0));
  place.onpointerdown = () => { held = true; };
  place.onpointerup = place.onpointercancel = () => { held = false; };
  videos.forEach((video) => {
    video.onclick = () => hear(video);
    const button = video.closest("figure").querySelector("[data-step=hear]");
    if (button) button.onclick = () => hear(video);
  });
  root.addEventListener("keydown", (event) => {
    if (event.key === " " && !event.target.closest("button, a, summary")) { event.preventDefault(); play.click(); }
    const chosen = videos[Number(event.key) - 1];
    if (chosen) hear(chosen);
  });
  hear(videos[0]);
  follow();
}
