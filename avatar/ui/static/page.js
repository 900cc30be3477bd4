// The page's own: a dialog that plays a video of the gallery.
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
