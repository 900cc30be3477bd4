// Our HTML panels: presses on [data-action] go to the server; arrow keys move between radios; delete must be confirmed.
const confirmFor = 4000;

element.addEventListener("click", (event) => {
  const pressed = event.target.closest("[data-action]");
  if (!pressed || pressed.disabled) return;
  const { action, id } = pressed.dataset;
  if (action === "play") {
    window.liveAvatar.show(pressed.dataset.src, pressed.getAttribute("aria-label"));
    return;
  }
  if (pressed.dataset.confirm && !pressed.dataset.armed) {
    const words = pressed.textContent;
    pressed.dataset.armed = "yes";
    pressed.textContent = pressed.dataset.confirm;
    setTimeout(() => {
      delete pressed.dataset.armed;
      if (pressed.isConnected && pressed.textContent === pressed.dataset.confirm) pressed.textContent = words;
    }, confirmFor);
    return;
  }
  if (pressed.getAttribute("role") === "radio") check(pressed);
  trigger(action === "resume" ? "submit" : "select", { action, id });
});

element.addEventListener("keydown", (event) => {
  const radio = event.target.closest('[role="radio"]');
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  if (!radio || !step) return;
  event.preventDefault();
  const radios = [...element.querySelectorAll('[role="radio"]')].filter((other) => other.offsetParent !== null);
  const next = radios[(radios.indexOf(radio) + step + radios.length) % radios.length];
  next.focus();
  check(next);
  trigger("select", { action: next.dataset.action, id: next.dataset.id });
});

function check(chosen) {
  for (const radio of element.querySelectorAll('[role="radio"]')) {
    radio.setAttribute("aria-checked", String(radio === chosen));
    radio.tabIndex = radio === chosen ? 0 : -1;
  }
}
