// The faces of the portrait as boxes, and the editor of face points: handles, by mouse, touch or arrow keys.
// props.value: {for, verdict, points: {name: [x, y]}, edited, head_only}, fractions of the picture; and the keys
// listed in framing.js; props.image, props.words.
const root = element.querySelector(".points");
const order = ["mouth_left", "outer_lip_top", "mouth_right", "outer_lip_bottom"];
const inner = ["mouth_left", "inner_lip_top", "mouth_right", "inner_lip_bottom"];
const names = [...new Set([...order, ...inner]), "chin"];
const fineStep = 0.002, coarseStep = 0.01, reachPx = 30;
let drawn = "", editing = false;

const asks = () => props.value.engine === "preview" && ["weak", "none"].includes(props.value.verdict);
const several = () => props.value.faces.length > 1;
const moving = () => asks() || editing;

function draw() {
  const shown = Boolean(props.image && props.value && props.value.points);
  element.closest("#points").toggleAttribute("data-shown", shown);
  root.hidden = !shown;
  if (!shown) { drawn = ""; root.replaceChildren(); return; }
  if (drawn !== props.image + props.value.for) {
    editing = props.value.edited;
    build();
    drawn = props.image + props.value.for;
    if (asks()) root.scrollIntoView({ block: "nearest" });
  }
  place();
}

function build() {
  const words = props.words;
  const svg = (inside) => `<svg viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">${inside}</svg>`;
  root.innerHTML = `
    <div class="points-ask"><h3></h3><p class="points-why"></p></div>
    <p class="faces-why"></p>
    <div class="points-picture"><img alt="">${svg('<polygon class="outer"/><polygon class="inner"/>')}</div>
    <p class="points-bad" role="alert" hidden></p>
    <p class="muted points-keys"></p>
    <label class="points-skip"><input type="checkbox"><span></span></label>
    <button type="button" class="points-edit"></button>`;
  root.querySelector("h3").textContent = words.points_title;
  root.querySelector(".points-keys").textContent = words.points_keys;
  root.querySelector(".points-bad").textContent = words.points_bad;
  root.querySelector(".points-skip span").textContent = words.points_head_only;
  root.querySelector("img").src = props.image;
  const skip = root.querySelector("input");
  skip.addEventListener("change", () => { props.value = { ...props.value, head_only: skip.checked }; place(); });
  root.querySelector(".points-edit").addEventListener("click", edit);
  const picture = root.querySelector(".points-picture");
  picture.addEventListener("pointerdown", grab);
  const count = props.value.faces.length;
  root.querySelector(".faces-why").textContent = words.frame_faces.replace("{count}", count);
  const faces = choices(words.frame_faces.replace("{count}", count), props.value.faces.map((_, index) => index), () => "", choose);
  faces.className = "faces";
  for (const [index, radio] of [...faces.children].entries()) {
    const { left, top, right, bottom } = props.value.faces[index].box;
    Object.assign(radio.style, { left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%` });
    radio.setAttribute("aria-label", words.frame_face.replace("{number}", index + 1).replace("{count}", count));
    radio.innerHTML = `<i aria-hidden="true">${index + 1}</i>`;
  }
  picture.append(faces);
  for (const name of names) {
    const handle = document.createElement("button");
    handle.type = "button";
    handle.className = "handle";
    handle.dataset.point = name;
    handle.setAttribute("aria-label", words[name]);
    handle.title = words[name];
    handle.addEventListener("keydown", nudge);
    picture.append(handle);
  }
  root.append(buildFraming());
}

function choose(index) {
  const { points, verdict } = props.value.faces[index];
  editing = false;
  wish({ face: index, points, verdict, edited: false });
}

// Switch from "sure" to points placed by hand, and back to the points that were found.
function edit() {
  editing = !editing;
  const found = props.value.faces[props.value.face].points;
  if (editing) place();
  else wish({ edited: false, points: found });
}

function place(points = props.value.points) {
  const { value, words } = props;
  const open = moving() || several();
  root.toggleAttribute("data-open", open);
  root.querySelector(".points-ask").hidden = !asks();
  root.querySelector(".points-why").textContent = words[`points_${value.verdict}`] || "";
  root.querySelector(".faces-why").hidden = root.querySelector(".faces").hidden = !several();
  root.querySelector(".points-picture").hidden = !open;
  root.querySelector(".points-keys").hidden = !moving();
  root.querySelector(".points-skip").hidden = !asks();
  root.querySelector(".points-skip input").checked = value.head_only;
  const button = root.querySelector(".points-edit");
  button.hidden = value.engine !== "preview" || asks();
  button.textContent = editing ? words.frame_edited : words.frame_edit;
  mark(root.querySelector(".faces"), value.face);
  for (const handle of root.querySelectorAll(".handle")) {
    const [x, y] = points[handle.dataset.point];
    handle.style.left = `${100 * x}%`;
    handle.style.top = `${100 * y}%`;
    handle.disabled = value.head_only;
    handle.hidden = !moving();
  }
  const line = (which) => which.map((name) => points[name].join(",")).join(" ");
  root.querySelector("svg").toggleAttribute("hidden", !moving());
  root.querySelector(".outer").setAttribute("points", line(order));
  root.querySelector(".inner").setAttribute("points", line(inner));
  root.querySelector(".points-picture").toggleAttribute("data-off", value.head_only);
  root.querySelector(".points-bad").hidden = !moving() || value.head_only || inOrder(points);
  placeFraming();
}

function inOrder(p) {
  return p.mouth_left[0] < p.mouth_right[0] && p.outer_lip_top[1] <= p.inner_lip_top[1]
    && p.inner_lip_top[1] <= p.inner_lip_bottom[1] && p.inner_lip_bottom[1] <= p.outer_lip_bottom[1]
    && p.outer_lip_bottom[1] < p.chin[1];
}

const within = (share) => Math.min(1, Math.max(0, share));

function keep(points) {
  wish({ points, edited: true });
}

// The handle nearest to the press: lips are close together, and the topmost handle may not be the one meant.
function nearest(event, box) {
  const far = ([x, y]) => Math.hypot(event.clientX - box.left - x * box.width, event.clientY - box.top - y * box.height);
  const name = names.reduce((best, other) => far(props.value.points[other]) < far(props.value.points[best]) ? other : best);
  return far(props.value.points[name]) <= reachPx ? root.querySelector(`.handle[data-point="${name}"]`) : null;
}

function grab(event) {
  const box = event.currentTarget.getBoundingClientRect();
  const handle = props.value.head_only || !moving() ? null : nearest(event, box);
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

// Gradio takes any quoted word of this script for an event, and would send an event's object as the property.
watch("value image words placed".split(" "), draw);
draw();
