// Where each speaker's voice acts, as boxes on the portrait: dragged to move, by the corner to resize, or moved and
// resized (with Shift) by the arrow keys. props.value: {for, faces: [{left, top, right, bottom}], boxes: {number:
// [left, top, right, bottom]}}, fractions of the picture; numbers count faces from the left. props.words.
const root = element.querySelector(".areas");
const leastSide = 0.04, step = 0.01, aroundFace = [0.6, 0.5, 0.6, 1.2]; // of the face's width and height
const limited = (share) => Math.min(1, Math.max(0, share));
let drawn = "";

function draw() {
  const shown = Boolean(props.value && props.value.faces && props.value.faces.length);
  root.hidden = !shown;
  if (!shown) { drawn = ""; root.replaceChildren(); return; }
  if (drawn !== props.value.for) { build(); drawn = props.value.for; }
  place();
}

function build() {
  root.innerHTML = `<p></p><div class="areas-switches"></div><div class="points-picture"><img alt=""></div>`;
  root.querySelector("p").textContent = props.words.areas_why;
  root.querySelector("img").src = document.querySelector("#points img")?.src || "";
  const picture = root.querySelector(".points-picture");
  props.value.faces.forEach((face, index) => {
    const number = index + 1, named = props.words.areas_one.replace("{number}", number);
    const label = document.createElement("label");
    label.innerHTML = `<input type="checkbox"><span></span>`;
    label.querySelector("span").textContent = named;
    label.querySelector("input").addEventListener("change", (event) => limit(number, event.target.checked));
    root.querySelector(".areas-switches").append(label);
    const box = Object.assign(document.createElement("button"), { type: "button", className: "area" });
    box.dataset.number = number;
    box.setAttribute("aria-label", named);
    box.innerHTML = `<b aria-hidden="true">${number}</b><i aria-hidden="true"></i>`;
    box.addEventListener("pointerdown", grab);
    box.addEventListener("keydown", nudge);
    picture.append(box);
  });
}

function place(boxes = props.value.boxes) {
  for (const box of root.querySelectorAll(".area")) {
    const at = boxes[box.dataset.number];
    box.hidden = !at;
    if (!at) continue;
    const [left, top, right, bottom] = at.map((share) => 100 * share);
    Object.assign(box.style, { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` });
  }
  for (const [index, input] of [...root.querySelectorAll("input")].entries()) input.checked = Boolean(boxes[index + 1]);
  root.querySelector(".points-picture").hidden = !Object.keys(boxes).length;
}

function keep(boxes) {
  props.value = { ...props.value, boxes };
  place();
}

function limit(number, on) {
  const { [number]: before, ...others } = props.value.boxes;
  if (!on) { keep(others); return; }
  const { left, top, right, bottom } = props.value.faces[number - 1], [w, n, e, s] = aroundFace;
  const width = right - left, height = bottom - top;
  keep({ ...others, [number]: [left - w * width, top - n * height, right + e * width, bottom + s * height].map(limited) });
}

// A box moved, or resized by its lower right corner; it stays in the picture and keeps a least size.
function moved([left, top, right, bottom], dx, dy, resizes) {
  if (resizes) return [left, top, Math.min(1, Math.max(left + leastSide, right + dx)), Math.min(1, Math.max(top + leastSide, bottom + dy))];
  const x = Math.min(1 - right, Math.max(-left, dx)), y = Math.min(1 - bottom, Math.max(-top, dy));
  return [left + x, top + y, right + x, bottom + y];
}

function grab(event) {
  const box = event.currentTarget, number = box.dataset.number, from = props.value.boxes[number];
  const picture = box.parentElement.getBoundingClientRect(), resizes = event.target.tagName === "I";
  let boxes = props.value.boxes;
  event.preventDefault();
  box.focus();
  box.setPointerCapture(event.pointerId);
  box.onpointermove = (move) => {
    const dx = (move.clientX - event.clientX) / picture.width, dy = (move.clientY - event.clientY) / picture.height;
    boxes = { ...props.value.boxes, [number]: moved(from, dx, dy, resizes) };
    place(boxes);
  };
  box.onpointerup = box.onpointercancel = () => {
    box.onpointermove = box.onpointerup = box.onpointercancel = null;
    keep(boxes);
  };
}

function nudge(event) {
  const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!by) return;
  event.preventDefault();
  const number = event.currentTarget.dataset.number, { boxes } = props.value;
  keep({ ...boxes, [number]: moved(boxes[number], by[0] * step, by[1] * step, event.shiftKey) });
}

watch("value words".split(" "), draw);
draw();
