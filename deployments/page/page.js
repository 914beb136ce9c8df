// The page: uploads pictures, lists them, and shows what was found in the one whose id stands behind the address's #.

const KEY = "api-key"; // of the tab's session storage
const UPLOADS_AT_ONCE = 4;
const PENDING_PERIOD_MS = 2000;
const MOST_TRIES = 5;

const at = (id) => document.getElementById(id);
const pictures = new Map(); // image id -> address of its bytes in this tab
let cursor = null; // of the next page of older pictures
let shown = null; // the image that is looked at, with its objects of every score

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// --- The service

class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

// An answer of the service; raises a Problem with its reason. What is only too much just now is asked for again.
async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  for (let tries = 1; ; tries++) {
    const response = await fetch(path, { ...options, headers: key ? { "X-API-Key": key } : {} });
    if (response.ok) return response;
    const wait_s = Number(response.headers.get("Retry-After"));
    if (wait_s > 0 && wait_s <= 10 && tries < MOST_TRIES) {
      await new Promise((resolve) => setTimeout(resolve, 1000 * wait_s));
      continue;
    }
    const body = await response.json().catch(() => ({}));
    throw new Problem(response.status, body.detail ?? `${response.status} ${response.statusText}`);
  }
}

const askJson = async (path, options) => (await ask(path, options)).json();

// Does this, and tells what went wrong; true when nothing did.
async function tell(work) {
  try {
    await work();
  } catch (error) {
    if (error.status === 401) at("key-form").hidden = false;
    at("problem").textContent = error instanceof Problem ? error.message : `The service cannot be reached: ${error.message}`;
    at("problem").hidden = false;
    return false;
  }
  at("problem").hidden = true;
  return true;
}

// The address of a picture's bytes in this tab. An <img> could send no key; and what a browser cannot show (TIFF), or may
// not load (from a bucket), the service draws anew, without circles.
async function addressOf(imageId) {
  if (!pictures.has(imageId)) {
    const blob = await ask(`images/${imageId}/content`).then((response) => response.blob()).catch(() => null);
    const isShown = blob && (await createImageBitmap(blob).then((bitmap) => bitmap.close() ?? true).catch(() => false));
    const bytes = isShown ? blob : await (await ask(`images/${imageId}/annotated?min_score=1`)).blob();
    pictures.set(imageId, URL.createObjectURL(bytes));
  }
  return pictures.get(imageId);
}

// --- The list

function summary(image) {
  if (image.status === "pending") return "is being looked at";
  if (image.status === "failed") return `failed: ${image.error}`;
  const { count } = image.detection;
  return count === 1 ? "1 object" : `${count} objects`;
}

const nameOf = (image) => image.filename ?? `${image.image_id.slice(0, 12)}…`;

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((each) => each.isIntersecting)) {
    seen.unobserve(entry.target);
    addressOf(entry.target.dataset.imageId).then((address) => (entry.target.src = address)).catch(() => {});
  }
});

function listItem(image) {
  const picture = element("img", { alt: "" });
  picture.dataset.imageId = image.image_id;
  const link = element(
    "a",
    { href: `#${image.image_id}` },
    picture,
    element("span", {}, element("span", { className: "name" }, nameOf(image)), element("small", {}, summary(image))),
  );
  const item = element("li", {}, link);
  item.dataset.imageId = image.image_id;
  item.dataset.status = image.status;
  if (image.status === "done") seen.observe(picture);
  return item;
}

const itemOf = (imageId) => document.querySelector(`#pictures li[data-image-id="${imageId}"]`);

function put(image) {
  const item = listItem(image);
  const old = itemOf(image.image_id);
  if (old) old.replaceWith(item);
  else at("pictures").prepend(item);
  markCurrent();
}

function markCurrent() {
  for (const link of document.querySelectorAll("#pictures a")) {
    if (link.hash === location.hash) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  at("nothing").hidden = at("pictures").children.length > 0;
}

async function listMore() {
  const page = await askJson(`images/?limit=30${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
  cursor = page.next_cursor;
  at("more").hidden = cursor === null;
  at("pictures").append(...page.items.filter((image) => !itemOf(image.image_id)).map(listItem));
  markCurrent();
}

async function refreshPending() {
  for (const item of document.querySelectorAll('#pictures li[data-status="pending"]')) {
    const image = await askJson(`images/${item.dataset.imageId}`).catch(() => null);
    if (image === null || image.status === "pending") continue;
    put(image);
    if (location.hash === `#${image.image_id}`) await tell(show);
  }
  setTimeout(refreshPending, PENDING_PERIOD_MS);
}

// --- Uploads

const waiting = [];
let uploading = 0;

function upload(files) {
  for (const file of files) {
    const line = element("li", {}, `${file.name}: waiting`);
    at("uploads").append(line);
    waiting.push({ file, line });
  }
  while (uploading < UPLOADS_AT_ONCE && waiting.length) uploadNext();
}

async function uploadNext() {
  const { file, line } = waiting.shift();
  uploading++;
  line.textContent = `${file.name}: uploading`;
  try {
    const body = new FormData();
    body.append("file", file);
    const image = await askJson("images/", { method: "POST", body });
    put(image);
    line.remove();
    if (!waiting.length) location.hash = image.image_id;
  } catch (error) {
    if (error.status === 401) at("key-form").hidden = false;
    line.className = "failed";
    line.textContent = `${file.name}: ${error.message}`;
  } finally {
    uploading--;
    if (waiting.length) uploadNext();
  }
}

// --- The picture

async function show() {
  const imageId = location.hash.slice(1);
  markCurrent();
  at("picture").hidden = imageId === "";
  if (imageId === "") return;
  const [image, found] = await Promise.all([
    askJson(`images/${imageId}`),
    askJson(`images/${imageId}/objects?min_score=0`),
  ]);
  if (location.hash.slice(1) !== imageId) return; // another one was chosen meanwhile
  shown = { ...image, objects: found.objects };
  const { detector } = image.detection ?? {};
  at("name").textContent = nameOf(image);
  at("facts").textContent =
    `${image.width} × ${image.height} px, ${Math.ceil(image.size_bytes / 1000)} kB, ` +
    `${new Date(image.created_at).toLocaleString()}; ${summary(image)}` + (detector ? ` (${detector.name} ${detector.version})` : "");
  at("score-label").hidden = at("objects").hidden = image.status !== "done";
  at("score").value = image.detection?.min_score ?? 0;
  at("circles").setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
  at("image").alt = `${nameOf(image)}: ${summary(image)}`;
  at("image").removeAttribute("src");
  drawObjects();
  if (image.status !== "done") return;
  const address = await addressOf(imageId);
  if (location.hash.slice(1) === imageId) at("image").src = address;
}

function drawObjects() {
  const minScore = Number(at("score").value);
  at("score-shown").textContent = minScore.toFixed(2);
  const objects = shown.objects.filter((object) => object.score >= minScore);
  at("circles").replaceChildren(...objects.map(circle));
  at("objects").tBodies[0].replaceChildren(...objects.map(row));
}

function circle({ centroid, radius }, index) {
  const drawn = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  for (const [name, value] of Object.entries({ cx: centroid.x, cy: centroid.y, r: radius })) drawn.setAttribute(name, value);
  drawn.addEventListener("pointerenter", () => mark(index));
  drawn.addEventListener("pointerleave", () => mark(-1));
  return drawn;
}

function row({ label, centroid, radius, score }, index) {
  const numbers = [`${centroid.x.toFixed(1)}, ${centroid.y.toFixed(1)}`, radius.toFixed(1), score.toFixed(2)];
  const made = element("tr", {}, ...[`${index + 1} ${label}`, ...numbers].map((text) => element("td", {}, text)));
  made.addEventListener("pointerenter", () => mark(index));
  made.addEventListener("pointerleave", () => mark(-1));
  return made;
}

function mark(index) {
  for (const parent of [at("circles"), at("objects").tBodies[0]]) {
    [...parent.children].forEach((child, number) => child.classList.toggle("marked", number === index));
  }
}

async function detectAgain() {
  put(await askJson(`images/${shown.image_id}/detection`, { method: "POST" }));
  await show();
}

async function remove() {
  const imageId = shown.image_id;
  await ask(`images/${imageId}`, { method: "DELETE" });
  itemOf(imageId)?.remove();
  URL.revokeObjectURL(pictures.get(imageId));
  pictures.delete(imageId);
  location.hash = "";
}

// --- What people do

const start = () => tell(async () => Promise.all([listMore(), show()]));

at("files").addEventListener("change", (event) => {
  upload([...event.target.files]);
  event.target.value = "";
});
for (const [name, isOver] of Object.entries({ dragover: true, dragleave: false, drop: false })) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", isOver);
    if (name === "drop") upload([...event.dataTransfer.files]);
  });
}
at("more").addEventListener("click", () => tell(listMore));
at("score").addEventListener("input", drawObjects);
at("again").addEventListener("click", () => tell(detectAgain));
at("delete").addEventListener("click", () => tell(remove));
at("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, at("key").value);
  at("key-form").hidden = await start();
});
window.addEventListener("hashchange", () => tell(show));

await start();
refreshPending();
