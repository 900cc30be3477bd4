// Which part of the portrait is shown: one radio group per choice, and a small preview of the result.
// props.value also holds: faces [{verdict, box, points, cuts}], face, size, engine, framing, aspect, extend,
// background, background_file {path}, small.
const framings = ["whole", "half", "shoulders", "head"];
const aspects = ["as-is", "9:16", "1:1", "16:9"];
const backgrounds = ["keep", "blur", "colour", "picture", "green", "transparent"];
const previewPx = 148, plainColour = "#20242b";
const portrait = new Image();
portrait.onload = () => drawPreview();

// A radio group: one tab stop, the arrow keys move and choose, as everywhere on the page.
function choices(label, names, wordOf, choose) {
  const group = document.createElement("div");
  group.className = "choices";
  group.setAttribute("role", "radiogroup");
  group.setAttribute("aria-label", label);
  for (const name of names) {
    const radio = document.createElement("button");
    Object.assign(radio, { type: "button", textContent: wordOf(name) });
    radio.dataset.choice = name;
    radio.setAttribute("role", "radio");
    radio.addEventListener("click", () => choose(name));
    group.append(radio);
  }
  group.addEventListener("keydown", moveChoice);
  return group;
}

function moveChoice(event) {
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const radios = [...event.currentTarget.querySelectorAll('[role="radio"]')];
  const next = radios[(radios.indexOf(event.target) + step + radios.length) % radios.length];
  next.focus();
  next.click();
}

function mark(group, chosen) {
  for (const radio of group.querySelectorAll('[role="radio"]')) {
    const is = radio.dataset.choice === String(chosen);
    radio.setAttribute("aria-checked", String(is));
    radio.tabIndex = is ? 0 : -1;
  }
}

function wish(changes) {
  props.value = { ...props.value, ...changes };
  place();
  trigger("input");
}

function buildFraming() {
  const words = props.words;
  const panel = document.createElement("div");
  panel.className = "framing";
  panel.innerHTML = `<canvas role="img"></canvas><div class="framing-side">
    <h3></h3><p class="framing-small"><span></span> <button type="button" class="framing-crop"></button></p></div>`;
  panel.querySelector("canvas").setAttribute("aria-label", words.frame_preview);
  panel.querySelector("h3").textContent = words.frame_title;
  panel.querySelector(".framing-small span").textContent = words.frame_small;
  const crop = panel.querySelector(".framing-crop");
  crop.textContent = words.frame_crop;
  crop.addEventListener("click", () => wish({ framing: "shoulders" }));
  const side = panel.querySelector(".framing-side");
  const row = (name, group) => {
    const line = document.createElement("div");
    line.className = `framing-row framing-${name}`;
    line.append(Object.assign(document.createElement("span"), { textContent: words[`frame_${name}`] }), group);
    side.append(line);
  };
  row("framing", choices(words.frame_framing, framings, (one) => words[`framing_${one}`], (framing) => wish({ framing })));
  row("aspect", choices(words.frame_aspect, aspects, (one) => words[`aspect_${one}`], (aspect) => wish({ aspect })));
  const fill = choices(words.frame_extend, ["blur", "colour"], (one) => words[`frame_${one}`], (one) =>
    wish({ extend: one === "blur" ? "blur" : panel.querySelector("input").value }));
  const colour = Object.assign(document.createElement("input"), { type: "color", value: plainColour });
  colour.setAttribute("aria-label", words.frame_colour);
  colour.addEventListener("change", () => wish({ extend: colour.value }));
  fill.append(colour);
  row("extend", fill);
  row("background", backgroundChoices(words));
  side.append(Object.assign(document.createElement("p"), { className: "framing-note", textContent: words.frame_transparent }));
  return panel;
}

// What is behind the person; a picture is uploaded first, then chosen.
function backgroundChoices(words) {
  const colour = Object.assign(document.createElement("input"), { type: "color", value: plainColour });
  colour.setAttribute("aria-label", words.frame_background_colour);
  colour.addEventListener("change", () => wish({ background: colour.value }));
  const file = Object.assign(document.createElement("input"), { type: "file", accept: "image/*", hidden: true });
  file.addEventListener("change", async () => {
    const [picture] = file.files, asked = props.value.for;
    file.value = "";
    if (!picture) return;
    try {
      const { path } = await upload(picture);
      if (props.value && props.value.for === asked) wish({ background: "picture", background_file: { path } });
    } catch (error) {
      console.error(error);
      root.querySelector(".framing-failed").hidden = false;
    }
  });
  const group = choices(words.frame_background, backgrounds, (one) => words[`background_${one}`], (one) => {
    root.querySelector(".framing-failed").hidden = true;
    if (one === "picture") file.click();
    else wish({ background: one === "colour" ? colour.value : one });
  });
  const failed = Object.assign(document.createElement("span"), { className: "framing-failed", hidden: true });
  failed.setAttribute("role", "alert");
  failed.textContent = words.frame_picture_failed;
  group.append(colour, file, failed);
  return group;
}

function placeFraming() {
  const { value } = props, panel = root.querySelector(".framing");
  mark(panel.querySelector(".framing-framing .choices"), value.framing);
  mark(panel.querySelector(".framing-aspect .choices"), value.aspect);
  mark(panel.querySelector(".framing-extend .choices"), value.extend === "blur" ? "blur" : "colour");
  showColour(panel.querySelector(".framing-extend input"), value.extend === "blur" ? null : value.extend);
  panel.querySelector(".framing-small").hidden = !value.small || value.framing !== "whole";
  const [left, top, width, height] = cutNow();
  const { background } = value, isColour = background.startsWith("#");
  mark(panel.querySelector(".framing-background .choices"), isColour ? "colour" : background);
  showColour(panel.querySelector(".framing-background input"), isColour ? background : null);
  panel.querySelector(".framing-note").hidden = background !== "transparent";
  const slack = 0.002;
  panel.querySelector(".framing-extend").hidden =
    left > -slack && top > -slack && left + width < 1 + slack && top + height < 1 + slack;
  if (portrait.src !== props.image) portrait.src = props.image;
  else drawPreview();
}

// The field of a colour, shown while its choice is "colour". colour: null while it is not.
function showColour(field, colour) {
  field.hidden = colour === null;
  if (colour !== null) field.value = colour;
}

// Left, top, width and height of what is shown, in fractions of the portrait.
function cutNow() {
  const { faces, face, framing, aspect } = props.value, by = props.placed;
  const byHand = moving() && by && by.for === props.value.for && by.face === face;
  return (byHand ? by : faces[face]).cuts[framing][aspect];
}

function drawPreview() {
  const canvas = root.querySelector(".framing canvas");
  if (!canvas || !portrait.naturalWidth || !props.value) return;
  const { naturalWidth: w, naturalHeight: h } = portrait, [left, top, width, height] = cutNow();
  const sharp = window.devicePixelRatio || 1, scale = (previewPx * sharp) / Math.max(width * w, height * h);
  canvas.width = Math.max(1, Math.round(width * w * scale));
  canvas.height = Math.max(1, Math.round(height * h * scale));
  canvas.style.width = `${canvas.width / sharp}px`;
  const pen = canvas.getContext("2d"), x = -left * w * scale, y = -top * h * scale, sx = w * scale, sy = h * scale;
  const right = canvas.width - x - sx, below = canvas.height - y - sy;
  if (props.value.extend !== "blur") {
    pen.fillStyle = props.value.extend;
    pen.fillRect(0, 0, canvas.width, canvas.height);
  } else {  // edges extended and blurred, as on the server
    pen.filter = `blur(${0.03 * Math.max(canvas.width, canvas.height)}px)`;
    pen.drawImage(portrait, x, y, sx, sy);
    if (x > 0) pen.drawImage(portrait, 0, 0, 1, h, 0, y, x, sy);
    if (right > 0) pen.drawImage(portrait, w - 1, 0, 1, h, x + sx, y, right, sy);
    if (y > 0) pen.drawImage(portrait, 0, 0, w, 1, x, 0, sx, y);
    if (below > 0) pen.drawImage(portrait, 0, h - 1, w, 1, x, y + sy, sx, below);
    pen.filter = "none";
  }
  pen.drawImage(portrait, x, y, sx, sy);
}
