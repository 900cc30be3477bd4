// The jobs panel. props.value: its HTML, sent again each second: rows that have not changed are left alone, so that a
// drag or the keyboard focus survives. Waiting jobs are reordered by dragging, or by their buttons.
const root = element.querySelector(".jobs-panel");
const source = new WeakMap();  // by row: its HTML as received
const notifyKey = "live-avatar-notify";
let dragged = null, states = null;

function draw() {
  if (dragged) return;  // updated at the drop
  const next = document.createElement("template");
  next.innerHTML = props.value || "";
  const fresh = next.content.querySelector(".job-list"), list = root.querySelector(".job-list");
  tell(fresh ? [...fresh.children] : []);
  element.closest("#jobs").toggleAttribute("data-any", Boolean(fresh));
  const focused = root.contains(document.activeElement) ? { ...document.activeElement.dataset } : null;
  if (!fresh || !list) {
    for (const row of fresh?.children ?? []) source.set(row, row.outerHTML);
    root.replaceChildren(next.content);
  } else {
    const rows = new Map([...list.children].map((row) => [row.dataset.id, row]));
    const kept = [...fresh.children].map((row) => {
      const old = rows.get(row.dataset.id), html = row.outerHTML;
      if (old && source.get(old) === html) return old;
      source.set(row, html);
      return row;
    });
    if (kept.length !== list.children.length || kept.some((row, at) => row !== list.children[at])) list.replaceChildren(...kept);
  }
  if (focused) refocus(focused);
  bell();
}

// Restore the focus: to the same button, or to another of the same job if that is gone or disabled.
function refocus({ action, id }) {
  if (root.contains(document.activeElement) || !id) return;
  const buttons = [...root.querySelectorAll(`.job[data-id="${CSS.escape(id)}"] button:not(:disabled)`)];
  (buttons.find((button) => button.dataset.action === action) ?? buttons[0])?.focus();
}

element.addEventListener("click", (event) => {
  const pressed = event.target.closest("[data-action]");
  if (event.target.closest(".jobs-notify")) ask();
  if (!pressed || pressed.disabled) return;
  const { action, id, to, src } = pressed.dataset;
  if (action === "play") window.liveAvatar.show(src, pressed.getAttribute("aria-label"));
  else if (to !== undefined) trigger("select", { action: "move", id, to: Number(to) });
  else trigger(["resume", "watch"].includes(action) ? "submit" : "select", { action, id });
});

const waiting = () => [...root.querySelectorAll('.job[data-state="waiting"]')];

element.addEventListener("dragstart", (event) => {
  dragged = event.target.closest?.(".job[draggable]");
  if (!dragged) return;
  event.dataTransfer.effectAllowed = "move";
  event.dataTransfer.setData("text/plain", dragged.dataset.name);
  dragged.toggleAttribute("data-dragged", true);
});

element.addEventListener("dragover", (event) => {
  const over = dragged && event.target.closest('.job[data-state="waiting"]');
  if (!over) return;
  event.preventDefault();
  if (over === dragged) return;
  const box = over.getBoundingClientRect();
  over[event.clientY < box.top + box.height / 2 ? "before" : "after"](dragged);
});

element.addEventListener("drop", (event) => dragged && event.preventDefault());

element.addEventListener("dragend", () => {
  const moved = dragged;
  dragged = null;
  if (!moved) return;
  moved.toggleAttribute("data-dragged", false);
  trigger("select", { action: "move", id: moved.dataset.id, to: waiting().indexOf(moved) });
});

// A notification when a job ends while the page is hidden, if the visitor has asked for it.
const supported = "Notification" in window && window.isSecureContext;
const wanted = () => supported && Notification.permission === "granted" && localStorage.getItem(notifyKey) === "yes";

function tell(rows) {
  const now = new Map(rows.map((row) => [row.dataset.id, row.dataset.state]));
  for (const row of rows) {
    const before = states?.get(row.dataset.id), { id, state, name, news } = row.dataset;
    if (!["running", "waiting"].includes(before) || !news || !document.hidden || !wanted()) continue;
    const notification = new Notification(news, { body: name, tag: id });
    notification.onclick = () => { window.focus(); notification.close(); };
  }
  states = now;
}

async function ask() {
  if (wanted()) localStorage.removeItem(notifyKey);
  else if (await Notification.requestPermission() === "granted") localStorage.setItem(notifyKey, "yes");
  bell();
}

function bell() {
  const button = root.querySelector(".jobs-notify");
  if (!button) return;
  const blocked = supported && Notification.permission === "denied";
  button.hidden = !supported;
  button.disabled = blocked;
  button.setAttribute("aria-pressed", String(wanted()));
  button.textContent = blocked ? button.dataset.blocked : wanted() ? button.dataset.on : button.dataset.off;
}

watch(["value"], draw);
draw();
