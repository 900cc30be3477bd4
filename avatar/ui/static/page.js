// The page's own: the player comes into view when it is wanted; a dialog plays the gallery's videos.
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
