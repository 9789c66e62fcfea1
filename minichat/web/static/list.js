// --- The list of chats.

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
  document.addEventListener("click", ({ target }) => {
    for (const menu of document.querySelectorAll(".mc-menu[open]")) if (!menu.contains(target)) menu.open = false;
    const open = ui("#mc-chatbar").hasAttribute("data-open");
    if (target.closest("#mc-listing")) listing(!open);
    else if (open && !target.closest("#mc-chatbar")) listing(false);
  });
  channel?.addEventListener("message", list);
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

// Show another chat, or a new one.
async function go(id) {
  await idle();
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
  if (chat.id === page.chat.id) await go(newId());
  await removeChat(chat.id);
  localStorage.removeItem(draftOf(chat.id));
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
