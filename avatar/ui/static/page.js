// The page's own script: scrolls to the player when it is needed, replaces it by the finished video's when it has
// stopped at its end; a dialog plays the gallery's videos.
document.addEventListener("click", (event) => {
  if (!event.target.closest('#generate, [data-action="example"]')) return;
  const stage = document.querySelector("#stage");  // on a phone the player may be out of sight
  if (stage.getBoundingClientRect().top > window.innerHeight * 0.6) stage.scrollIntoView({ behavior: "smooth", block: "center" });
});

window.liveAvatar = {
  show(source, label) {
    const dialog = document.createElement("dialog");
    dialog.className = "theatre";
    const video = Object.assign(document.createElement("video"), { src: source, controls: true, autoplay: true });
    video.setAttribute("playsinline", "");
    video.setAttribute("aria-label", label);
    const close = document.createElement("button");
    close.type = "button";
    close.className = "theatre-close";
    close.setAttribute("aria-label", "×");
    close.textContent = "×";
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    dialog.append(video, close);
    document.body.append(dialog);
    dialog.showModal();
  },
};

// The finished video replaces the live player at its "ended" event. Browsers may stop a stream just short of its end
// and never fire it: hls.js handles that, but Gradio listens only to the element. So once the run is over (Replay is
// there), a live player that has stalled though nobody paused it is replaced as if Replay had been pressed.
(() => {
  const lookMs = 500, endS = 1;
  const patienceMs = { atEnd: 2500, elsewhere: 15000 };  // elsewhere: the network may still deliver the rest
  let stood = { video: null, at: 0, since: 0 };
  setInterval(() => {
    const video = document.querySelector("#live video"), replay = document.querySelector("#replay");
    const now = performance.now();
    const waiting = video && replay?.offsetParent && (video.ended || !video.paused);
    if (!waiting || video !== stood.video || video.currentTime !== stood.at) {
      stood = { video, at: video?.currentTime, since: now };
      return;
    }
    const atEnd = video.ended || video.currentTime > video.duration - endS;
    if (now - stood.since < (atEnd ? patienceMs.atEnd : patienceMs.elsewhere)) return;
    stood.since = now;
    replay.click();
  }, lookMs);
})();

// Gradio's recorder takes only formats that the browser knows as sound, and ignores those it cannot play. A video
// dropped on it, or sound in a rarer format, is handled like "Use the sound of a video"; several files are handled
// like "Queue several recordings".
document.addEventListener("drop", (event) => {
  const files = event.target.closest?.("#speech") ? [...(event.dataTransfer?.files ?? [])] : [];
  const [file] = files, many = files.length > 1;
  const kind = many ? "[multiple]" : ":not([multiple])";
  const input = document.querySelector(`#inputs .picker input[type=file][data-testid*=upload-button]${kind}`);
  const plays = !many && file?.type.startsWith("audio/") && document.createElement("audio").canPlayType(file.type);
  if (!file || !input || plays) return;
  event.preventDefault();
  event.stopPropagation();
  const taken = new DataTransfer();
  for (const one of files) taken.items.add(one);
  input.files = taken.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}, true);

// The address that `python -m avatar live` prints opens the tab Live.
if (new URLSearchParams(location.search).has("live")) {
  const opening = setInterval(() => {
    const tab = document.querySelector('#speech-source [data-tab-id="live"]');
    if (!tab) return;
    clearInterval(opening);
    if (tab.getAttribute("aria-selected") !== "true") tab.click();
  }, 100);
}
