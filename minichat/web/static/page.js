// The page: what it sends and keeps, the list of chats, and what Gradio's components leave out.

const ui = (selector) => document.querySelector(selector);
const box = () => ui("#mc-box textarea");
const channel = window.BroadcastChannel ? new BroadcastChannel("minichat") : null;

// --- The chat that is shown, and what is happening to it.

const page = { chat: emptyChat(), growing: null, fresh: false, told: false };

async function openChat(id) {
  const found = id ? await store.get("chats", id) : null;
  page.chat = found ?? { ...emptyChat(), id: id ?? newId() };
  page.growing = null;
  remember();
}

function remember() {
  sessionStorage.setItem("minichat.chat", page.chat.id);
  box() && write(localStorage.getItem(`minichat.draft.${page.chat.id}`) ?? "");
}

async function save() {
  const kept = await keepChat(page.chat);
  if (!kept && !page.told) notice("The browser's storage is full: this chat is not kept. Export it, or delete others.");
  page.told = !kept;
  channel?.postMessage(page.chat.id);
  list();
}

// --- What goes to the server with a request, and what comes back.

// The branch that is shown; pictures that the server lacks are uploaded first.
//   next: a question comes after it; one that was never answered gives way to that, and stays a branch of its own
async function talk(next = false) {
  const messages = branch(page.chat).map(({ role, text, pictures }) => ({ role, text, pictures }));
  if (next && messages.at(-1)?.role === "user") messages.pop();
  const names = [...new Set(messages.flatMap((message) => message.pictures))];
  return { system: page.chat.system, messages, files: names.length ? await upload(await lacking(names)) : {} };
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
const before = ({ fresh = false, next = false }) => async (_, ...values) => {
  Object.assign(page, { growing: null, fresh });
  keepSettings(values);
  try {
    return [await talk(next), ...values];
  } catch (error) {
    notice("The server cannot be reached. What you wrote is kept: try again in a moment.");
    throw error;
  }
};

// What the server says of the conversation: all of it, or what has come of a reply. One after the other.
let kept = Promise.resolve();
const keep = (said) => (kept = kept.then(() => said && take(said)).catch(console.error));

async function take(said) {
  if (said.reply !== undefined) {
    page.growing = grow(page.chat, said.reply, page.growing);
  } else {
    for (const [name, data] of Object.entries(said.pictures ?? {})) await keepPicture(name, data).catch(() => {});
    const replied = said.messages.at(-1)?.role === "assistant";
    graft(page.chat, said.messages, { growing: page.growing, fresh: page.fresh && replied });
    page.chat.system = said.system ?? "";
    if (replied) Object.assign(page, { growing: null, fresh: false });
    keepDraft(box()?.value ?? "");
  }
  await save();
}

// --- What is typed and not sent yet, and the settings.

function keepDraft(text) {
  const key = `minichat.draft.${page.chat.id}`;
  if (text) localStorage.setItem(key, text);
  else localStorage.removeItem(key);
}

// Put words into the box as if they had been typed, so that Gradio has them, too.
function write(text) {
  const area = box();
  if (area.value === text) return;
  Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set.call(area, text);
  area.dispatchEvent(new Event("input", { bubbles: true }));
}

const SETTINGS = "minichat.settings";
let controls = 0; // how many values the panel has; they come last

function keepSettings(values) {
  if (controls && values.length >= controls) localStorage.setItem(SETTINGS, JSON.stringify(values.slice(-controls)));
}

function settings(...values) {
  controls = values.length;
  try {
    const held = JSON.parse(localStorage.getItem(SETTINGS));
    return Array.isArray(held) && held.length === controls ? held : values;
  } catch {
    return values;
  }
}

// --- The list of chats.

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

const time = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "long" });
const when = (moment) => (new Date(moment).toDateString() === new Date().toDateString() ? time : day).format(moment);
let searched = "";

function chatList() {
  const search = make("input", { type: "search", placeholder: "Search chats", oninput: () => ((searched = search.value), list()) });
  search.setAttribute("aria-label", "Search chats");
  const items = make("ul", { id: "mc-list" });
  const file = make("input", { type: "file", accept: ".json,.jsonl", multiple: true, hidden: true, onchange: () => bringIn(file) });
  const all = async () => (await store.all("chats")).sort((a, b) => b.changed - a.changed);
  ui("#mc-chats").replaceChildren(
    search,
    items,
    file,
    make("div", { className: "mc-row" },
      make("button", { type: "button", textContent: "Import", onclick: () => file.click() }),
      make("button", { type: "button", textContent: "Export all", onclick: async () => download(await all(), "json", "MiniChat chats") })),
  );
  list();
}

async function list() {
  const items = ui("#mc-list");
  if (!items) return;
  const words = searched.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  const text = (chat) => [chat.title, ...Object.values(chat.nodes).map((node) => node.text)].join(" ").toLocaleLowerCase();
  const chats = (await store.all("chats"))
    .filter((chat) => words.every((word) => text(chat).includes(word)))
    .sort((a, b) => b.changed - a.changed);
  items.replaceChildren(...chats.map(item));
  if (!chats.length) items.append(make("li", { className: "mc-none", textContent: words.length ? "Nothing found." : "Chats are kept in this browser, and nowhere else." }));
}

function item(chat) {
  const open = make("button", { type: "button", className: "mc-open", onclick: () => go(chat.id) },
    make("span", { textContent: chat.title }), make("small", { textContent: when(chat.changed) }));
  if (chat.id === page.chat.id) open.setAttribute("aria-current", "true");
  const menu = make("details", { className: "mc-menu" }, make("summary", { textContent: "⋯" }),
    make("div", {},
      choice("Rename", () => rename(chat)),
      choice("Export to read (Markdown)", () => download([chat], "md", chat.title)),
      choice("Export whole (JSON)", () => download([chat], "json", chat.title)),
      choice("Export to train with (JSON lines)", () => download([chat], "jsonl", chat.title)),
      choice("Delete", () => forget(chat))));
  menu.querySelector("summary").setAttribute("aria-label", `More for “${chat.title}”`);
  return make("li", {}, open, menu);

  function choice(textContent, act) {
    return make("button", { type: "button", textContent, onclick: () => ((menu.open = false), act()) });
  }
}

// Show another chat, or a new one; what is being answered stops.
async function go(id) {
  stop();
  await openChat(id);
  ui("#mc-show").click();
  list();
  listing(false);
}

// On a narrow screen the list lies over the chat when it is asked for.
function listing(open) {
  ui("#mc-chatbar").toggleAttribute("data-open", open);
  ui("#mc-listing")?.setAttribute("aria-expanded", String(open));
  if (open) ui("#mc-chats input").focus();
}

const stop = () => ui("#mc-box .stop-button")?.click();

async function rename(chat) {
  const title = window.prompt("The chat's title", chat.title)?.trim();
  if (!title) return;
  const stored = chat.id === page.chat.id ? page.chat : chat;
  Object.assign(stored, { title, named: true });
  await store.merge(stored);
  list();
}

async function forget(chat) {
  if (!window.confirm(`Delete “${chat.title}” for good?`)) return;
  await removeChat(chat.id);
  if (chat.id === page.chat.id) await go(null);
  channel?.postMessage(chat.id);
  list();
}

async function bringIn(input) {
  try {
    const count = (await Promise.all([...input.files].map(async (file) => takeIn(await file.text())))).reduce((a, b) => a + b, 0);
    notice(`${count} ${count === 1 ? "chat is" : "chats are"} here now.`);
  } catch (error) {
    notice(`That file cannot be read: ${error.message} Give one that was exported here.`);
  }
  input.value = "";
  list();
}

function notice(text) {
  const shown = make("div", { className: "mc-notice", textContent: text });
  shown.setAttribute("role", "alert");
  document.body.append(shown);
  setTimeout(() => shown.remove(), 8000);
}

// --- Where Gradio's own parts leave something out.

function listen() {
  const insert = (text) => (box().focus(), document.execCommand("insertText", false, text));
  document.addEventListener("input", (event) => event.target === box() && keepDraft(box().value));
  document.addEventListener("paste", (event) => {
    const text = event.clipboardData?.getData("text");
    if (text && event.target === box() && event.defaultPrevented) insert(text); // it came with a picture
  });
  document.addEventListener("drop", (event) => {
    const text = event.dataTransfer?.getData("text");
    if (text && event.target.closest?.("#mc-box") && !event.dataTransfer.files.length) insert(text);
  });
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll(".mc-menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });
  document.addEventListener("click", (event) => {
    const open = ui("#mc-chatbar").hasAttribute("data-open");
    if (event.target.closest("#mc-listing")) listing(!open);
    else if (open && !event.target.closest("#mc-chatbar")) listing(false);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && ui("#mc-chatbar").hasAttribute("data-open")) listing(false);
  });
  channel?.addEventListener("message", list);
}

async function start() {
  box()?.setAttribute("aria-label", "Your message");
  chatList();
  listen();
  await openChat(sessionStorage.getItem("minichat.chat"));
  if (page.chat.leaf) ui("#mc-show").click();
}

window.minichat = {
  ask: before({ next: true }),
  again: before({ fresh: true }),
  edited: before({}),
  show: async () => [await talk()],
  fresh: async () => (await openChat(null), list(), []),
  keep,
  settings,
  keepSettings: (...values) => keepSettings(values),
};
start();
