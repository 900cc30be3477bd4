// The editor of face points: handles over the portrait, by mouse, touch or arrow keys.
// props.value: {for, verdict, points: {name: [x, y]}, head_only}, fractions of the picture; props.image, props.words.
const root = element.querySelector(".points");
const order = ["mouth_left", "outer_lip_top", "mouth_right", "outer_lip_bottom"];
const inner = ["mouth_left", "inner_lip_top", "mouth_right", "inner_lip_bottom"];
const names = [...new Set([...order, ...inner]), "chin"];
const fineStep = 0.002, coarseStep = 0.01, reachPx = 30;
let drawn = "";

function draw() {
  const value = props.value;
  const asked = Boolean(props.image && value && value.points);
  element.closest("#points").toggleAttribute("data-asked", asked);
  root.hidden = !asked;
  if (!asked) { drawn = ""; root.replaceChildren(); return; }
  if (drawn !== props.image) { build(); drawn = props.image; root.scrollIntoView({ block: "nearest" }); }
  place();
}

function build() {
  const words = props.words;
  const svg = (inside) => `<svg viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">${inside}</svg>`;
  root.innerHTML = `
    <h3></h3><p class="points-why"></p>
    <div class="points-picture"><img alt="">${svg('<polygon class="outer"/><polygon class="inner"/>')}</div>
    <p class="points-bad" role="alert" hidden></p>
    <p class="muted points-keys"></p>
    <label class="points-skip"><input type="checkbox"><span></span></label>`;
  root.querySelector("h3").textContent = words.points_title;
  root.querySelector(".points-why").textContent = words[`points_${props.value.verdict}`];
  root.querySelector(".points-keys").textContent = words.points_keys;
  root.querySelector(".points-bad").textContent = words.points_bad;
  root.querySelector(".points-skip span").textContent = words.points_head_only;
  root.querySelector("img").src = props.image;
  const skip = root.querySelector("input");
  skip.checked = props.value.head_only;
  skip.addEventListener("change", () => { props.value = { ...props.value, head_only: skip.checked }; place(); });
  root.querySelector(".points-picture").addEventListener("pointerdown", grab);
  for (const name of names) {
    const handle = document.createElement("button");
    handle.type = "button";
    handle.className = "handle";
    handle.dataset.point = name;
    handle.setAttribute("aria-label", words[name]);
    handle.title = words[name];
    handle.addEventListener("keydown", nudge);
    root.querySelector(".points-picture").append(handle);
  }
}

function place(points = props.value.points) {
  for (const handle of root.querySelectorAll(".handle")) {
    const [x, y] = points[handle.dataset.point];
    handle.style.left = `${100 * x}%`;
    handle.style.top = `${100 * y}%`;
    handle.disabled = props.value.head_only;
  }
  const line = (which) => which.map((name) => points[name].join(",")).join(" ");
  root.querySelector(".outer").setAttribute("points", line(order));
  root.querySelector(".inner").setAttribute("points", line(inner));
  root.querySelector(".points-picture").toggleAttribute("data-off", props.value.head_only);
  root.querySelector(".points-bad").hidden = props.value.head_only || inOrder(points);
}

function inOrder(p) {
  return p.mouth_left[0] < p.mouth_right[0] && p.outer_lip_top[1] <= p.inner_lip_top[1]
    && p.inner_lip_top[1] <= p.inner_lip_bottom[1] && p.inner_lip_bottom[1] <= p.outer_lip_bottom[1]
    && p.outer_lip_bottom[1] < p.chin[1];
}

const within = (share) => Math.min(1, Math.max(0, share));

function keep(points) {
  props.value = { ...props.value, points };
  place(points);
}

// The handle nearest to where it was pressed: lips lie close together, and the topmost may not be the one meant.
function nearest(event, box) {
  const far = ([x, y]) => Math.hypot(event.clientX - box.left - x * box.width, event.clientY - box.top - y * box.height);
  const name = names.reduce((best, other) => far(props.value.points[other]) < far(props.value.points[best]) ? other : best);
  return far(props.value.points[name]) <= reachPx ? root.querySelector(`.handle[data-point="${name}"]`) : null;
}

function grab(event) {
  const box = event.currentTarget.getBoundingClientRect();
  const handle = props.value.head_only ? null : nearest(event, box);
  if (!handle) return;
  const [x, y] = props.value.points[handle.dataset.point];
  const offset = [event.clientX - box.left - x * box.width, event.clientY - box.top - y * box.height];
  let points = props.value.points;
  event.preventDefault();
  handle.focus();
  handle.setPointerCapture(event.pointerId);
  handle.onpointermove = (move) => {
    const at = [within((move.clientX - box.left - offset[0]) / box.width), within((move.clientY - box.top - offset[1]) / box.height)];
    points = { ...points, [handle.dataset.point]: at };
    place(points);
  };
  handle.onpointerup = handle.onpointercancel = () => {
    handle.onpointermove = handle.onpointerup = handle.onpointercancel = null;
    keep(points);
  };
}

function nudge(event) {
  const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!by) return;
  event.preventDefault();
  const step = event.shiftKey ? coarseStep : fineStep;
  const name = event.currentTarget.dataset.point;
  const [x, y] = props.value.points[name];
  keep({ ...props.value.points, [name]: [within(x + by[0] * step), within(y + by[1] * step)] });
}

watch(["value", "image", "words"], draw);
draw();
