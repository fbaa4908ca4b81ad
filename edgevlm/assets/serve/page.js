// The server's page: pictures and a question to /v1/chat/completions, the answer as it comes, its four stages, and where
// a box is. What a model says is text, whatever it looks like: nothing here makes elements out of it.

const $ = (id) => document.getElementById(id);
const KEY = "edgevlm.key"; // of sessionStorage: an API key, gone with the tab
const STAGES = [["preprocess", "preprocess_ms"], ["encode", "encode_ms"], ["prefill", "prompt_ms"], ["decode", "predicted_ms"]];
const KINDS = 8; // colours of boxes
const SVG = "http://www.w3.org/2000/svg";
const LABEL = 13; // height of a label's letters on the screen, in pixels

const state = {
  pictures: [], // {blob, name, url, asked}: asked is the turn that showed it, or null before the next question
  shown: null, // the picture on the stage
  turns: [], // {question, pictures, answer}: answered ones
  marks: null, // {picture, boxes, points} that is drawn
  running: null, // the AbortController of the answer that is coming
  model: null,
  context: 0,
};

// --- small things ------------------------------------------------------------------------------------------

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

const grouped = (number) => Math.round(number).toLocaleString("en");

const counted = (number, what) => `${grouped(number)} ${what}${number === 1 ? "" : "s"}`;

function duration(ms) {
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  return ms >= 100 ? `${ms.toFixed(0)} ms` : `${ms.toFixed(1)} ms`;
}

function tell(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

// --- the server --------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** A request with the key, if there is one. Throws Refused with the server's own sentence. */
async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...(options.body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server cannot be reached: see whether it still runs, and ask again.");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Refused(response.status, body?.error?.message ?? `The server answered with ${response.status}: see its log.`);
}

/** The events of a stream, parsed. Throws Refused where one is an error, and where the stream ends before its end. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Refused(0, "The answer broke off: see whether the server still runs, and ask again.");
    text += value;
    const parts = text.split(/\r?\n\r?\n/);
    text = parts.pop();
    for (const part of parts) {
      const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const event = JSON.parse(data);
      if (event.error) throw new Refused(0, event.error.message);
      yield event;
    }
  }
}

/** Name and context of the model; asks for a key where the server does, and waits while it loads. */
async function greet() {
  try {
    const { data } = await (await call("/v1/models")).json();
    state.model = data[0].id;
    state.context = data[0].meta?.n_ctx ?? data[0].max_model_len ?? 0;
    describe();
    await call("/health");
  } catch (error) {
    if (error.status === 401) return unlock();
    $("model").textContent = error.status === 503 ? `${state.model ?? "The model"} is being loaded …` : error.message;
    setTimeout(greet, 1500);
  }
}

function describe(used = 0) {
  const room = used ? `${grouped(used)} of ${grouped(state.context)} tokens used` : `room for ${grouped(state.context)} tokens`;
  $("model").textContent = state.context ? `${state.model} · ${room}` : state.model;
}

// --- the key -----------------------------------------------------------------------------------------------

let afterKey = greet;

function unlock(then = greet) {
  afterKey = then;
  if (sessionStorage.getItem(KEY)) $("locked-why").textContent = "The key was not accepted: check it, and try again.";
  sessionStorage.removeItem(KEY);
  $("model").textContent = "A key is needed.";
  if (!$("locked").open) $("locked").showModal();
  $("key").focus();
}

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!/^[!-~]{1,512}$/.test(key)) {
    $("locked-why").textContent = "A key has visible ASCII characters and no spaces: check it, and try again.";
    return;
  }
  sessionStorage.setItem(KEY, key);
  $("key").value = "";
  $("locked").close();
  if (afterKey !== greet) greet();
  afterKey();
});

// --- pictures ----------------------------------------------------------------------------------------------

/** Takes files for the next question; says which of them are no pictures. */
async function add(files) {
  tell("");
  for (const blob of files) {
    const url = URL.createObjectURL(blob);
    const probe = new Image();
    probe.src = url;
    try {
      await probe.decode();
    } catch {
      URL.revokeObjectURL(url);
      tell(`'${blob.name || "What was given"}' is no picture that this browser can show: choose a JPEG, PNG or WebP.`);
      continue;
    }
    state.shown = { blob, url, name: blob.name || "picture", width: probe.naturalWidth, height: probe.naturalHeight, asked: null };
    state.pictures.push(state.shown);
  }
  paint();
  if (matchMedia("(pointer: fine)").matches && !$("trouble").textContent) $("question").focus();
}

function remove(picture) {
  URL.revokeObjectURL(picture.url);
  state.pictures = state.pictures.filter((each) => each !== picture);
  state.shown = state.pictures.at(-1) ?? null;
  paint();
  $("choose").focus();
}

/** The stage, from the state. */
function paint() {
  const { pictures, shown } = state;
  $("drop").classList.toggle("pitch", !pictures.length);
  document.body.classList.toggle("talking", $("log").childElementCount > 0);
  $("view").hidden = !shown;
  $("strip").hidden = pictures.length < 2;
  $("ideas").hidden = state.turns.length > 0 || Boolean(state.running) || $("log").childElementCount > 0;
  $("new").hidden = !pictures.length && !$("log").childElementCount;
  $("choose").lastElementChild.textContent = pictures.length ? "Add a picture" : "Choose a picture";
  if (shown) {
    if ($("picture").src !== shown.url) $("picture").src = shown.url;
    $("view").querySelector(".fit").style.setProperty("--ratio", String(shown.width / shown.height));
    $("picture").alt = `Picture ${pictures.indexOf(shown) + 1}, ${shown.name}`;
    const text = make("span", "", `${shown.name}, ${shown.width} × ${shown.height}${shown.asked ? "" : ", for your next question"}`);
    $("caption").replaceChildren(text);
    if (!shown.asked) {
      const button = make("button", "", "Remove");
      button.type = "button";
      button.addEventListener("click", () => remove(shown));
      $("caption").append(button);
    }
  }
  $("strip").replaceChildren(...pictures.map((picture, number) => {
    const item = make("li"), button = make("button", "thumb"), image = make("img");
    button.type = "button";
    button.setAttribute("aria-pressed", String(picture === shown));
    button.setAttribute("aria-label", `Picture ${number + 1}, ${picture.name}`);
    image.src = picture.url;
    image.alt = "";
    button.append(image);
    button.addEventListener("click", () => {
      state.shown = picture;
      paint();
      $("strip").children[number].firstElementChild.focus();
    });
    item.append(button);
    return item;
  }));
  draw();
}

$("choose").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", () => {
  add([...$("files").files]);
  $("files").value = "";
});
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (!files.length) return;
  event.preventDefault();
  add(files);
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  if (event.dataTransfer.files.length) add([...event.dataTransfer.files]);
  else tell("What was dropped is no file: save the picture first, or copy and paste it.");
});

// --- the camera --------------------------------------------------------------------------------------------

const REFUSALS = {
  NotAllowedError: "The browser was told not to give the camera to this page: allow it beside the page's address, and try again.",
  NotFoundError: "No camera was found: connect one, or choose a picture.",
  NotReadableError: "The camera is used by another program: close that, and try again.",
};
let facing = "environment";

async function shoot() {
  tell("");
  if (!navigator.mediaDevices?.getUserMedia) {
    tell("Browsers give the camera to secure pages only: open this one by https, or on the server's own machine as localhost. On a phone, 'Choose a picture' can take one, too.");
    return;
  }
  try {
    const video = { facingMode: facing, width: { ideal: 1920 }, height: { ideal: 1440 } };
    const stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    $("video").srcObject = stream;
    if (!$("camera").open) $("camera").showModal();
    await $("video").play();
    const cameras = (await navigator.mediaDevices.enumerateDevices()).filter((device) => device.kind === "videoinput");
    $("turn").hidden = cameras.length < 2;
    $("take").focus();
  } catch (error) {
    leave();
    tell(REFUSALS[error.name] ?? `The camera could not be used (${error.name}): choose a picture instead.`);
  }
}

function release() {
  for (const track of $("video").srcObject?.getTracks() ?? []) track.stop();
  $("video").srcObject = null;
}

function leave() {
  release();
  if ($("camera").open) $("camera").close();
}

$("shoot").addEventListener("click", shoot);
$("leave").addEventListener("click", leave);
$("camera").addEventListener("close", release);
$("turn").addEventListener("click", () => {
  facing = facing === "environment" ? "user" : "environment";
  release();
  shoot();
});
$("take").addEventListener("click", () => {
  const video = $("video"), canvas = make("canvas");
  if (!video.videoWidth) return;
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => add([new File([blob], "camera.jpg", { type: "image/jpeg" })]), "image/jpeg", 0.92);
  leave();
  $("question").focus();
});

// --- where something is ------------------------------------------------------------------------------------

function shape(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** Boxes and points over the picture, in its own pixels; labels keep their size on the screen. */
function draw() {
  const marks = state.marks, svg = $("marks");
  svg.replaceChildren();
  if (!marks || marks.picture !== state.shown || !$("picture").clientWidth) return;
  const { width, height } = marks.picture, scale = width / $("picture").clientWidth;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const tags = [];
  marks.boxes.forEach((box, number) => {
    const place = { x: box.x0, y: box.y0, width: Math.max(0, box.x1 - box.x0), height: Math.max(0, box.y1 - box.y0), rx: 3 * scale };
    svg.append(shape("rect", { class: "halo", ...place }), shape("rect", { class: `place k${number % KINDS}`, ...place }));
    if (box.label) tags.push([box.label, box.x0, box.y0, number]);
  });
  marks.points.forEach((point, index) => {
    const number = marks.boxes.length + index;
    svg.append(shape("circle", { class: `place dot k${number % KINDS}`, cx: point.x, cy: point.y, r: 8 * scale }));
    if (point.label) tags.push([point.label, point.x + 10 * scale, point.y, number]);
  });
  const taken = []; // by labels
  for (const [label, x, y, number] of tags) {
    const text = shape("text", { class: "name", "font-size": LABEL * scale });
    text.textContent = label.length > 40 ? `${label.slice(0, 39)}…` : label;
    const tag = shape("rect", { class: `tag k${number % KINDS}`, rx: 4 * scale });
    svg.append(tag, text);
    const wide = text.getComputedTextLength() + 12 * scale, high = 1.6 * LABEL * scale;
    const left = Math.max(0, Math.min(x, width - wide));
    let top = y - high >= 0 ? y - high : Math.min(y, height - high);
    while (taken.some((other) => left < other.left + other.wide && other.left < left + wide && Math.abs(top - other.top) < high)) top += high;
    taken.push({ left, top, wide });
    for (const [name, value] of Object.entries({ x: left, y: top, width: wide, height: high })) tag.setAttribute(name, value);
    text.setAttribute("x", left + 6 * scale);
    text.setAttribute("y", top + high / 2);
  }
}

new ResizeObserver(draw).observe($("picture"));
$("picture").addEventListener("load", draw);

/** Below an answer: what it points at, in words, and a button that draws it. */
function places(found, picture) {
  const row = make("div", "places"), button = make("button", "", "Show on the picture"), list = make("ul");
  button.type = "button";
  const all = [...found.boxes, ...found.points];
  all.forEach((place, number) => {
    const where = "x0" in place ? [place.x0, place.y0, place.x1, place.y1] : [place.x, place.y];
    list.append(make("li", `k${number % KINDS}`, `${place.label || ("x0" in place ? "box" : "point")} at ${where.map((value) => Math.round(value)).join(", ")}`));
  });
  const show = (jump) => {
    state.marks = { picture, ...found };
    state.shown = picture;
    paint();
    if (jump) $("view").scrollIntoView({ block: "nearest" });
  };
  button.addEventListener("click", () => show(true));
  row.append(button, list);
  show(false);
  return row;
}

// --- the four stages ---------------------------------------------------------------------------------------

function stages(timings) {
  const box = make("div"), bar = make("div", "bar"), list = make("dl", "stages");
  bar.setAttribute("aria-hidden", "true");
  const more = {
    encode: timings.image_n ? counted(timings.image_n, "image token") : "no picture",
    prefill: counted(timings.prompt_n, "token") + (timings.cache_n ? `, ${grouped(timings.cache_n)} kept` : ""),
    decode: counted(timings.predicted_n, "token") + (timings.predicted_per_second ? `, ${grouped(timings.predicted_per_second)}/s` : ""),
  };
  STAGES.forEach(([name, field], number) => {
    const part = make("span", `k${number}`), group = make("div"), value = make("dd", "", duration(timings[field]));
    part.style.flexGrow = String(timings[field]);
    bar.append(part);
    if (more[name]) value.append(make("span", "note", more[name]));
    group.append(make("dt", `k${number}`, name), value);
    list.append(group);
  });
  box.append(bar, list);
  return box;
}

// --- asking ------------------------------------------------------------------------------------------------

const dataUrl = (blob) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.replace(/^data:(?!image\/)[^;,]*/, "data:image/png")); // a file without a kind
  reader.onerror = () => reject(new Refused(0, "The picture could not be read: choose it again."));
  reader.readAsDataURL(blob);
});

async function message(turn) {
  const pictures = await Promise.all(turn.pictures.map(async (picture) => ({ type: "image_url", image_url: { url: (picture.data ??= await dataUrl(picture.blob)) } })));
  return { role: "user", content: pictures.length ? [...pictures, { type: "text", text: turn.question }] : turn.question };
}

/** What the fields under "More" say. Throws Refused for what is wrong in them. */
function settings() {
  const tokens = Number($("tokens").value), temperature = Number($("temperature").value), schema = $("schema").value.trim();
  const found = { temperature, max_tokens: tokens };
  if (!Number.isInteger(tokens) || tokens < 1) throw new Refused(0, "'Most tokens' is no whole number above 0: correct it under More.");
  if (!(temperature >= 0)) throw new Refused(0, "The temperature is no number from 0 on: correct it under More.");
  if (!schema) return found;
  try {
    found.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(schema) } };
  } catch (error) {
    throw new Refused(0, `The schema under More is no JSON (${error.message}): correct it.`);
  }
  return found;
}

async function ask(question) {
  if (state.running || !question.trim()) return;
  const turn = { question, pictures: state.pictures.filter((picture) => !picture.asked), answer: "" };
  const item = make("li"), bubble = make("p", "question"), answer = make("p", "answer"), wait = make("p", "wait");
  const running = (state.running = new AbortController());
  for (const picture of turn.pictures) {
    const image = make("img");
    image.src = picture.url;
    image.alt = picture.name;
    bubble.append(image);
    picture.asked = turn;
  }
  bubble.append(make("span", "", question));
  item.append(bubble, answer, wait);
  item.setAttribute("aria-busy", "true"); // a screen reader says the answer once it is whole
  $("log").append(item);
  $("question").value = "";
  grow();
  busy(true);
  state.marks = null;
  paint();
  item.scrollIntoView({ block: "end" });

  const begun = performance.now();
  const tick = () => (wait.textContent = `${turn.answer ? "Answering" : turn.pictures.length ? "Looking" : "Thinking"} … ${((performance.now() - begun) / 1000).toFixed(1)} s`);
  tick();
  const clock = setInterval(tick, 100);
  let last = null, failed = null;
  try {
    const messages = [];
    for (const earlier of state.turns) messages.push(await message(earlier), { role: "assistant", content: earlier.answer });
    messages.push(await message(turn));
    const body = JSON.stringify({ model: state.model ?? undefined, messages, stream: true, ...settings() });
    for await (const event of events(await call("/v1/chat/completions", { method: "POST", body, signal: running.signal }))) {
      const choice = event.choices[0];
      if (choice?.delta?.content) {
        turn.answer += choice.delta.content;
        follow(() => (answer.textContent = turn.answer));
      }
      if (choice?.finish_reason) last = { reason: choice.finish_reason, timings: event.timings, places: event.edgevlm };
    }
  } catch (error) {
    failed = error;
  }
  clearInterval(clock);
  wait.remove();
  state.running = null;
  busy(false);
  if (!item.isConnected) return; // a new conversation has begun
  follow(() => {
    if (failed) giveBack(turn, item, failed);
    else finish(turn, item, answer, last);
    item.removeAttribute("aria-busy");
    paint();
  });
}

function finish(turn, item, answer, last) {
  state.turns.push(turn);
  if (/^\s*[<[{]/.test(turn.answer)) answer.classList.add("code"); // JSON, or places in the model's own form
  if (!turn.answer) item.append(make("p", "aside", "The answer is empty."));
  if (last?.reason === "length") item.append(make("p", "aside", "It stops here because of 'Most tokens', under More."));
  const shown = state.pictures.filter((picture) => picture.asked);
  const found = { boxes: [], points: [], ...last?.places };
  if (shown.length && found.boxes.length + found.points.length) item.append(places(found, shown.at(-1)));
  if (last?.timings) {
    item.append(stages(last.timings));
    describe(last.timings.cache_n + last.timings.prompt_n + last.timings.predicted_n);
  }
}

/** A question without an answer is no part of the conversation: it goes back to where it came from. */
function giveBack(turn, item, error) {
  for (const picture of turn.pictures) picture.asked = null;
  if (!$("question").value) $("question").value = turn.question;
  grow();
  if (error.name === "AbortError") item.append(make("p", "aside", "Stopped. This question is not part of the conversation."));
  else if (error instanceof Refused) item.append(make("p", "wrong", error.message));
  else {
    item.append(make("p", "wrong", "This page failed: its console says how."));
    console.error(error);
  }
  if (error.status === 401) {
    item.remove();
    unlock(() => ask(turn.question));
  }
}

function busy(yes) {
  $("send").hidden = yes;
  $("stop").hidden = !yes;
  if (yes && document.activeElement === document.body) $("stop").focus();
}

/** Do what makes the conversation longer, and go to its end, unless somebody has scrolled away from there. */
function follow(change) {
  const box = getComputedStyle($("log")).overflowY === "auto" ? $("log") : document.scrollingElement;
  const there = box.scrollHeight - box.scrollTop - box.clientHeight < 160;
  change();
  if (there) box.scrollTop = box.scrollHeight;
}

function grow() {
  const field = $("question");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask($("question").value);
});
$("question").addEventListener("input", grow);
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask($("question").value);
});
$("stop").addEventListener("click", () => {
  state.running?.abort();
  $("question").focus();
});
$("ideas").addEventListener("click", (event) => {
  if (event.target.closest("button")) ask(event.target.closest("button").textContent);
});
$("new").addEventListener("click", () => {
  state.running?.abort();
  for (const picture of state.pictures) URL.revokeObjectURL(picture.url);
  Object.assign(state, { pictures: [], shown: null, turns: [], marks: null });
  $("log").replaceChildren();
  tell("");
  describe();
  paint();
  $("question").focus();
});

greet();
