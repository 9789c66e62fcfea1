// --- The message box: its words are kept as they are typed, pictures come from anywhere, and what was sent and not
// answered comes back. Gradio has the box's value, too, so what is put into it goes by the listener of a hidden button.

const SIDE = 1024; // pixels; the server keeps pictures no larger

const box = () => ui("#mc-box textarea");
const busy = () => Boolean(ui("#mc-box .stop-button"));
const draftOf = (id) => `minichat.draft.${id}`;

function keepDraft(text) {
  if (text) localStorage.setItem(draftOf(page.chat.id), text);
  else localStorage.removeItem(draftOf(page.chat.id));
}

// Put words into the box as if they had been typed.
function write(text) {
  const area = box();
  if (area.value === text) return;
  Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set.call(area, text);
  area.dispatchEvent(new Event("input", { bubbles: true }));
}

const insert = (text) => (box().focus(), document.execCommand("insertText", false, text));

let given = null; // {text, files}: a message, which goes before what is in the box, or files alone, which go after it

function put(message) {
  given = message;
  ui("#mc-put").click();
}

// The box's value with what was put into it.
function received(value) {
  const text = [given.text, value?.text].filter(Boolean).join("\n");
  const held = value?.files ?? [];
  const files = given.text === undefined ? [...held, ...given.files] : [...given.files, ...held];
  keepDraft(text);
  given = null;
  return { text, files };
}

// The message goes, and the box is empty: one may write on.
function sending(value) {
  const text = (value?.text ?? "").replace(/[\ud800-\udfff]/gu, ""); // without halves of characters
  Object.assign(page, { sent: { ...value, text }, asked: false });
  return { __type__: "update", value: { text: "", files: [] }, submit_btn: false, stop_btn: true };
}

// All is said. A message that was not answered comes back, unless the chat holds it: the connection broke in mid-reply.
async function settled(value) {
  await kept;
  const ready = { __type__: "update", submit_btn: true, stop_btn: false };
  given = page.asked ? null : page.sent;
  Object.assign(page, { sent: null, stopped: false });
  return given ? { ...ready, value: received(value) } : ready;
}

// --- Pictures: by the clip, pasted or dropped anywhere. Large ones shrink before they travel.

const asFile = (path, name) => ({
  path, url: `gradio_api/file=${path}`, orig_name: name, mime_type: "image/png", meta: { _type: "gradio.FileData" },
});

async function shrunk(file) {
  if (!/^image\/(?!gif|svg)/.test(file.type)) return file;
  try {
    const picture = await createImageBitmap(file);
    const scale = SIDE / Math.max(picture.width, picture.height);
    if (scale >= 1) return file;
    const canvas = make("canvas", { width: Math.max(1, picture.width * scale), height: Math.max(1, picture.height * scale) });
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    return (await new Promise((done) => canvas.toBlob(done, "image/webp", 0.95))) ?? file;
  } catch {
    return file; // what this browser cannot read, the server may
  }
}

// A folder's files that are pictures: browsers do not know all of their endings.
const isPictureFile = (file) => /^image\//.test(file.type) || /\.(avif|bmp|gif|hei[cf]|jpe?g|png|tiff?|webp)$/i.test(file.name);

async function attach(files) {
  files = [...files];
  if (ui(".mc-batch")) return addPictures(files);
  const told = notice(files.length === 1 ? `Adding ${files[0].name}…` : `Adding ${files.length} files…`);
  try {
    const form = new FormData();
    for (const file of files) form.append("files", await shrunk(file), file.name);
    const answer = await fetch("gradio_api/upload", { method: "POST", body: form });
    if (answer.ok) put({ files: (await answer.json()).map((path, place) => asFile(path, files[place].name)) });
    else notice(await answer.text());
  } catch {
    notice("The server cannot be reached: try again in a moment.");
  }
  told.remove();
}

function listenToBox() {
  const take = (event, files) => {
    event.preventDefault();
    event.stopImmediatePropagation(); // Gradio would take them, too
    attach(files);
  };
  const written = (target) => target.closest?.("input, textarea");
  window.addEventListener("input", (event) => event.target === box() && keepDraft(box().value));
  window.addEventListener("change", (event) => {
    if (!event.target.matches("#mc-box input[type=file]")) return;
    take(event, event.target.files);
    event.target.value = "";
  }, true);
  window.addEventListener("paste", (event) => {
    const text = event.clipboardData?.getData("text");
    const { files } = event.clipboardData ?? {};
    if (files?.length) take(event, files);
    if (text && (files?.length ? event.target === box() : !written(event.target))) insert(text);
  }, true);
  window.addEventListener("dragover", (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.toggleAttribute("data-drop", true);
  });
  window.addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.toggleAttribute("data-drop", false));
  window.addEventListener("drop", (event) => {
    document.body.toggleAttribute("data-drop", false);
    const text = event.dataTransfer?.getData("text");
    if (event.dataTransfer?.files.length) take(event, event.dataTransfer.files);
    else if (text && event.target.closest?.("#mc-box")) insert(text);
  }, true);
  // The question may not have left: its pictures are on their way. The server would hear of the stop first.
  window.addEventListener("click", (event) => event.target.closest?.("#mc-box .stop-button") && (page.stopped = true), true);
  window.addEventListener("keydown", (event) => {
    if (event.target !== box() || event.key !== "Enter" || event.shiftKey || event.isComposing || !busy()) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    notice("Wait for the reply, or stop it, before you go on.");
  }, true);
}
