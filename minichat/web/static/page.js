// The page: the chat that is shown, what goes to the server with a request, and what comes back.

const ui = (selector) => document.querySelector(selector);
const channel = window.BroadcastChannel ? new BroadcastChannel("minichat") : null;

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

//   growing: the id of the reply that grows     fresh: the next reply stands beside the one before
//   sent: the box's value, until it is answered     asked: whether the chat holds it
//   stopped: whether this was said since the question was sent     told: whether it was said that nothing can be kept
const page = { chat: newChat(), growing: null, fresh: false, sent: null, asked: false, stopped: false, told: false };

function shows(chat) {
  Object.assign(page, { chat, growing: null, stopped: false }); // a stop was for the chat before
  sessionStorage.setItem("minichat.chat", chat.id);
  showSystem();
}

async function showChat(id) {
  const chat = (await store.get("chats", id)) ?? { ...newChat(), id };
  chat.leaf ??= Object.keys(chat.nodes).sort().at(-1) ?? null; // all of it was undone
  shows(chat);
}

async function openChat(id) {
  await showChat(id);
  write(localStorage.getItem(draftOf(id)) ?? "");
}

async function save() {
  const kept = await keepChat(page.chat);
  if (!kept && !page.told) notice("The browser's storage is full: this chat is not kept. Export it, or delete others.");
  page.told = !kept;
  channel?.postMessage(page.chat.id);
  list();
  dress();
}

const stop = () => ui("#mc-box .stop-button")?.click();

// What is being answered stops, and is kept: it belongs to the chat that is shown.
async function idle() {
  stop();
  while (busy()) await new Promise((done) => setTimeout(done, 20));
  await kept;
}

// --- What goes to the server with a request, and what comes back.

// The branch that is shown; pictures that the server lacks are uploaded first.
//   next: a question comes after it; one that was never answered gives way to that, and stays a branch of its own
async function talk(next = false) {
  const messages = branch(page.chat).map(({ role, text, pictures }) => ({ role, text, pictures }));
  if (next && messages.at(-1)?.role === "user") messages.pop();
  const names = [...new Set(messages.flatMap((message) => message.pictures))];
  const system = takesSystem() ? page.chat.system : "";
  return { system, messages, files: names.length ? await upload(await lacking(names)) : {} };
}

async function lacking(names) {
  const answer = await fetch("minichat/lacking", { method: "POST", body: JSON.stringify(names) });
  return answer.ok ? answer.json() : names;
}

async function upload(names) {
  const files = {};
  for (const name of names) {
    const picture = await store.get("pictures", name);
    if (!picture) continue;
    const form = new FormData();
    form.append("files", await (await fetch(picture.data)).blob(), `${name}.png`);
    const answer = await fetch("gradio_api/upload", { method: "POST", body: form });
    if (answer.ok) files[name] = (await answer.json())[0];
  }
  return files;
}

// Before a request: the conversation in front of its other values.
async function before({ fresh = false, next = false, growing = null }, values) {
  Object.assign(page, { growing, fresh });
  settings.keep(values);
  await started;
  try {
    const said = await talk(next);
    if (!page.stopped) return [said, ...values];
  } catch {
    notice("The server cannot be reached. What you wrote is kept: try again in a moment.");
  }
  ui("#mc-settle").click();
  return new Promise(() => {}); // nothing is asked
}

// What the server says of the conversation: all of it, or what has come of a reply. One after the other.
let kept = Promise.resolve();
const keep = (said) => (kept = kept.then(() => said && take(said)).catch(console.error));

async function take(said) {
  if (said.model) named(said);
  if (said.reply !== undefined) {
    page.growing = grow(page.chat, said.reply, page.growing);
  } else {
    for (const [name, data] of Object.entries(said.pictures ?? {})) await keepPicture(name, data).catch(() => {});
    graft(page.chat, said.messages, { growing: page.growing, fresh: page.fresh && said.answered });
    page.asked = said.messages.at(-1)?.role === "user";
    page.growing = null;
    if (said.answered) Object.assign(page, { fresh: false, sent: null });
    keepDraft(box().value);
  }
  await save();
}

// --- The system text.

// The system text is the chat's own; what is typed is also that of later chats.
const takesSystem = () => desk.state?.system !== false; // the model's template has a place for it

function systemText(field) {
  field.oninput = () => {
    page.chat.system = field.value;
    localStorage.setItem(SYSTEM, field.value);
  };
  field.onchange = save;
  showSystem();
}

function showSystem() {
  const field = ui("#mc-system textarea");
  if (!field) return;
  field.value = page.chat.system;
  field.closest("label").hidden = !takesSystem();
}

function notice(text) {
  const shown = make("div", { className: "mc-notice", textContent: text, role: "alert" });
  (ui("dialog[open]") ?? document.body).append(shown); // what is open lies above all else
  setTimeout(() => shown.remove(), 8000);
  return shown;
}

async function start() {
  box().setAttribute("aria-label", "Your message");
  chatList();
  listenToBox();
  listenToMessages();
  openDesk();
  ui("#mc-batch").onclick = openBatch;
  offerDraw();
  figures(ui("#mc-switch input"));
  systemText(ui("#mc-system textarea"));
  page.chat.id = sessionStorage.getItem("minichat.chat") ?? page.chat.id;
  write([localStorage.getItem(draftOf(page.chat.id)), box().value].filter(Boolean).join("\n")); // one may be typing already
  await showChat(page.chat.id);
  if (page.chat.leaf) ui("#mc-show").click();
  if (!matchMedia("(pointer: coarse)").matches) box().focus(); // a phone would open its keyboard
}

// What Gradio's listeners call.
window.minichat = {
  sending,
  settled,
  received,
  undo,
  keep,
  keepSettings: (...values) => settings.keep(values),
  ask: (_, __, ...values) => before({ next: true }, [page.sent, ...values]),
  example: (_, ...values) => before({}, values),
  looked,
  looking: async () => [await talk(), lookedFor],
  on: (_, ...values) => before({ growing: page.chat.leaf }, values),
  again: (_, ...values) => before({ fresh: true }, values),
  edited: (_, ...values) => before({}, values),
  show: async () => [await talk()],
  fresh: async () => (await idle(), await openChat(newId()), list(), []),
  leave: async () => (await idle(), shows(newChat()), keepDraft(box().value), { __type__: "update", submit_btn: false, stop_btn: true }),
};
const started = start();
