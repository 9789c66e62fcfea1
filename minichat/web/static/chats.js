// Chats that this browser keeps: a tree of messages each, with pictures beside them, in IndexedDB.
//
// The server knows a conversation only while its page is open. The page sends the branch that is shown with every
// request (`Talk` in talk.py), and keeps what comes back. A message that is edited, and a reply that is generated anew,
// is a sibling of the one before: nothing that was written is ever taken out. Two tabs that go on with one chat add to
// one tree.
//
//   chat     {id, title, named, created, changed, system, nodes: {id: node}, leaf: id of the last message shown}
//   node     {id, parent, role, text, pictures: [name], partial, cut, figures}
//   picture  {name, data: "data:image/…"}, and its size in a table of its own, which can be read without the data

const PICTURE_BYTES = 200 * 2 ** 20; // of all chats; the pictures of those untouched the longest go first
const TITLE = 60; // letters

const newId = () => Date.now().toString(36) + Math.random().toString(36).slice(2, 8);

// --- The store. Where the browser has none (private windows of some), a table in memory takes its place.

const store = {
  memory: null,

  open() {
    this.opening ??= new Promise((resolve) => {
      const request = window.indexedDB?.open("minichat", 1);
      const without = () => {
        this.memory = { chats: new Map(), pictures: new Map(), sizes: new Map() };
        resolve(null);
      };
      if (!request) return without();
      request.onupgradeneeded = () => {
        request.result.createObjectStore("chats", { keyPath: "id" });
        request.result.createObjectStore("pictures", { keyPath: "name" });
        request.result.createObjectStore("sizes", { keyPath: "name" });
      };
      request.onsuccess = () => {
        request.result.onversionchange = () => request.result.close();
        resolve(request.result);
      };
      request.onerror = request.onblocked = without;
    });
    return this.opening;
  },

  async run(table, mode, act) {
    const database = await this.open();
    if (!database) return act(null, this.memory[table]);
    return new Promise((resolve, reject) => {
      const transaction = database.transaction(table, mode);
      let result;
      transaction.oncomplete = () => resolve(result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error ?? new Error("The store is closed."));
      act((request, then) => {
        request.onsuccess = () => (result = then ? then(request.result) : request.result);
      }, transaction.objectStore(table));
    });
  },

  get: (table, key) => store.run(table, "readonly", (on, held) => (on ? on(held.get(key)) : held.get(key))),
  all: (table) => store.run(table, "readonly", (on, held) => (on ? on(held.getAll()) : [...held.values()])),
  put: (table, value) =>
    store.run(table, "readwrite", (on, held) => (on ? on(held.put(value)) : held.set(value.id ?? value.name, value))),
  remove: (table, key) => store.run(table, "readwrite", (on, held) => (on ? on(held.delete(key)) : held.delete(key))),

  // Put a chat together with what another tab has added to it since.
  merge: (chat) =>
    store.run("chats", "readwrite", (on, held) => {
      if (!on) return held.set(chat.id, chat);
      on(held.get(chat.id), (stored) => {
        if (stored) chat.nodes = { ...stored.nodes, ...chat.nodes };
        held.put(chat);
      });
    }),
};

// --- A chat as a tree.

const emptyChat = () => {
  const now = Date.now();
  return { id: newId(), title: "", named: false, created: now, changed: now, system: "", nodes: {}, leaf: null };
};

const SYSTEM = "minichat.system"; // where the system text of chats to come is kept
const newChat = () => ({ ...emptyChat(), system: localStorage.getItem(SYSTEM) ?? "" });

// The messages from the first to this one.
function branch(chat, leaf = chat.leaf) {
  const path = [];
  for (let node = chat.nodes[leaf]; node; node = chat.nodes[node.parent]) path.unshift(node);
  return path;
}

// The messages that stand in the same place, oldest first.
const siblings = (chat, node) =>
  Object.values(chat.nodes)
    .filter((other) => other.parent === node.parent && other.role === node.role)
    .sort((a, b) => (a.id < b.id ? -1 : 1));

// The newest message that was written below this one.
function lastBelow(chat, node) {
  const below = Object.values(chat.nodes).filter((other) => other.parent === node.id);
  return below.length ? lastBelow(chat, below.reduce((a, b) => (a.id > b.id ? a : b))) : node;
}

const same = (node, said) =>
  node.role === said.role && node.text === said.text && node.pictures.join() === (said.pictures ?? []).join();

// Put a conversation's messages into the tree; the last of them is shown then.
//   growing: the reply that has been growing, of which this is the end
//   fresh: the last message is a new sibling, even if one says the same
function graft(chat, messages, { growing = null, fresh = false } = {}) {
  const shown = new Set(branch(chat).map((node) => node.id));
  let parent = null;
  messages.forEach((said, place) => {
    const last = place === messages.length - 1;
    const there = Object.values(chat.nodes).filter((node) => node.parent === parent);
    const alike = there.filter((node) => same(node, said));
    let node = last ? there.find((other) => other.id === growing) : null;
    if (node) Object.assign(node, { text: said.text, partial: false });
    else if (!(last && fresh)) node = alike.find((other) => shown.has(other.id)) ?? alike[0];
    node ??= { id: newId(), parent, role: said.role, text: said.text, pictures: said.pictures ?? [] };
    if (said.cut !== undefined) Object.assign(node, { cut: said.cut, figures: said.figures });
    chat.nodes[node.id] = node;
    parent = node.id;
  });
  chat.leaf = parent;
}

// What has come of a reply so far; returns its id.
function grow(chat, text, growing) {
  if (!chat.nodes[growing]) {
    growing = newId();
    chat.nodes[growing] = { id: growing, parent: chat.leaf, role: "assistant", text, pictures: [], partial: true };
    chat.leaf = growing;
  }
  chat.nodes[growing].text = text;
  return growing;
}

function titleOf(chat) {
  if (chat.named) return chat.title;
  const first = [...branch(chat), ...Object.values(chat.nodes)].find((node) => node.role === "user" && node.text);
  const words = (first?.text ?? "").replace(/\s+/g, " ").trim();
  return words.length > TITLE ? words.slice(0, TITLE - 1) + "…" : words || "A picture";
}

const picturesOf = (chat) => new Set(Object.values(chat.nodes).flatMap((node) => node.pictures));

// --- Keeping: a chat when it changes, and pictures within their bound.

async function keepPicture(name, data) {
  if (await store.get("sizes", name)) return;
  await makeRoom(data.length);
  await store.put("pictures", { name, data });
  await store.put("sizes", { name, size: data.length });
}

async function dropPicture(name) {
  await store.remove("sizes", name);
  await store.remove("pictures", name);
}

// Take out pictures of the chats that were untouched the longest, until so many bytes find room.
async function makeRoom(size) {
  const held = new Map((await store.all("sizes")).map((one) => [one.name, one.size]));
  let total = size + [...held.values()].reduce((a, b) => a + b, 0);
  if (total <= PICTURE_BYTES) return;
  const newest = (await store.all("chats")).sort((a, b) => b.changed - a.changed).flatMap((chat) => [...picturesOf(chat)]);
  const order = [...new Set([...newest, ...held.keys()])].reverse();
  for (const name of order.filter((each) => held.has(each))) {
    if (total <= PICTURE_BYTES) return;
    await dropPicture(name);
    total -= held.get(name);
  }
}

// Write a chat. Where the browser's storage is full, pictures of other chats give way to words.
async function keepChat(chat) {
  chat.changed = Date.now();
  chat.title = titleOf(chat);
  if (!Object.keys(chat.nodes).length) return true;
  try {
    await store.merge(chat);
    return true;
  } catch {
    try {
      await dropOldPictures(chat);
      await store.merge(chat);
      return true;
    } catch {
      return false;
    }
  }
}

async function dropOldPictures(chat) {
  const mine = picturesOf(chat);
  for (const { name } of await store.all("sizes")) if (!mine.has(name)) await dropPicture(name);
}

async function removeChat(id) {
  await store.remove("chats", id);
  const wanted = new Set((await store.all("chats")).flatMap((chat) => [...picturesOf(chat)]));
  for (const { name } of await store.all("sizes")) if (!wanted.has(name)) await dropPicture(name);
}

// --- Out and in: Markdown to read, JSON to bring back whole, JSON lines of messages to train with.

async function dataOf(chats) {
  const names = new Set(chats.flatMap((chat) => [...picturesOf(chat)]));
  const held = await Promise.all([...names].map((name) => store.get("pictures", name)));
  return Object.fromEntries(held.filter(Boolean).map((picture) => [picture.name, picture.data]));
}

const exporters = {
  md: async (chats) => {
    const data = await dataOf(chats);
    const shown = (name) => (data[name] ? `![a picture](${data[name]})\n\n` : "*(a picture that is no longer kept)*\n\n");
    const said = (node) =>
      `**${node.role === "user" ? "You" : "MiniChat"}**\n\n${node.pictures.map(shown).join("")}${node.text}\n\n`;
    return chats.map((chat) => `# ${titleOf(chat)}\n\n${branch(chat).map(said).join("")}`).join("\n");
  },
  json: async (chats) => JSON.stringify({ minichat: 1, chats, pictures: await dataOf(chats) }, null, 1),
  jsonl: async (chats) => {
    const data = await dataOf(chats);
    const part = (name) => ({ type: "image", base64: data[name].split(",", 2)[1] });
    const lines = chats
      .map((chat) => whole(branch(chat)))
      .filter((nodes) => nodes.length && nodes.every((node) => node.pictures.every((name) => data[name])))
      .map((nodes) => ({
        messages: nodes.map((node) => ({
          role: node.role,
          content: [...node.pictures.map(part), ...(node.text ? [{ type: "text", text: node.text }] : [])],
        })),
      }));
    return lines.map((line) => JSON.stringify(line) + "\n").join("");
  },
};

// Questions that have a reply.
const whole = (nodes) => nodes.slice(0, nodes.length - (nodes.length % 2));

const KINDS = { md: "text/markdown", json: "application/json", jsonl: "application/jsonl" };

async function download(chats, ending, name) {
  const plain = name.replace(/[^\p{L}\p{N} _-]/gu, "").trim().slice(0, 40) || "chat";
  saveFile(await exporters[ending](chats), KINDS[ending], `${plain}.${ending}`);
}

function saveFile(content, type, download) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([content], { type })), download });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// Chats of a file that was exported as JSON or as JSON lines; how many there were. They stand beside those that are here.
async function takeIn(text) {
  const first = text.trimStart().split("\n", 1)[0];
  let content = null;
  try {
    content = JSON.parse(text);
  } catch {
    if (!first.startsWith("{")) throw new Error("This is no JSON.");
  }
  const chats = content?.minichat ? ours(content) : lines(content ? [content] : text.split("\n").filter(Boolean).map(JSON.parse));
  for (const { chat, pictures } of chats) {
    for (const [name, data] of Object.entries(pictures)) await keepPicture(name, data);
    await keepChat(chat);
  }
  return chats.length;
}

const isPicture = (data) => typeof data === "string" && /^data:image\/(png|webp|jpeg|gif);base64,[A-Za-z0-9+/=]+$/.test(data);

function ours(content) {
  return content.chats.map((given) => {
    const chat = { ...emptyChat(), title: String(given.title ?? ""), named: Boolean(given.named), leaf: given.leaf };
    const pictures = {};
    for (const [id, node] of Object.entries(given.nodes)) {
      if (!["user", "assistant"].includes(node.role) || typeof node.text !== "string") throw new Error("A message is damaged.");
      const names = (node.pictures ?? []).filter((name) => /^[0-9a-f]{20}$/.test(name));
      chat.nodes[id] = { id, parent: node.parent ?? null, role: node.role, text: node.text, pictures: names };
      for (const name of names) if (isPicture(content.pictures?.[name])) pictures[name] = content.pictures[name];
    }
    for (const node of Object.values(chat.nodes)) {
      let [above, steps] = [node, 0];
      while ((above = chat.nodes[above.parent])) if (++steps > 10_000) throw new Error("Its messages go round in a circle.");
    }
    if (!chat.nodes[chat.leaf]) chat.leaf = null;
    chat.system = String(given.system ?? "");
    return { chat, pictures };
  });
}

function lines(records) {
  return records.map((record) => {
    const chat = emptyChat();
    const pictures = {};
    const said = record.messages.map((message) => {
      const parts = typeof message.content === "string" ? [{ type: "text", text: message.content }] : message.content;
      const names = parts
        .filter((part) => part.type === "image" && part.base64)
        .map((part) => {
          const data = part.base64.startsWith("data:") ? part.base64 : `data:${kindOf(part.base64)};base64,${part.base64}`;
          if (!isPicture(data)) throw new Error("A picture is damaged.");
          const name = [...crypto.getRandomValues(new Uint8Array(10))].map((b) => b.toString(16).padStart(2, "0")).join("");
          pictures[name] = data;
          return name;
        });
      const text = parts.filter((part) => part.type === "text").map((part) => part.text).join("\n");
      return { role: message.role, text, pictures: names };
    });
    if (said[0]?.role === "system") chat.system = said.shift().text;
    graft(chat, said);
    return { chat, pictures };
  });
}

const kindOf = (base64) =>
  ({ "/9j/": "image/jpeg", iVBO: "image/png", UklG: "image/webp", R0lG: "image/gif" })[base64.slice(0, 4)] ?? "image/png";
