// --- What the page's owner may do beside talking: keep replies to be learnt, teach them, and choose who answers.
//
// The set is a folder of the server's (`curate.py`). What became of a reply stands in its node of the chat: `mark`,
// "up" or "down", and `right`, the reply that is learnt in its place.

const desk = { state: null, after: 0, due: null, seen: false };
const ICONS = {
  up: "M7 11v9H4v-9h3Zm2 9h7.5a2 2 0 0 0 2-1.6l1.2-6A2 2 0 0 0 17.8 10H14V5.500a1.500 1.500 0 0 0-2.900-.5L9 11v9Z",
  down: "M17 13V4h3v9h-3Zm-2-9H7.500a2 2 0 0 0-2 1.600l-1.200 6A2 2 0 0 0 6.200 14H10v4.500a1.500 1.500 0 0 0 2.900.5L15 13V4Z",
  keep: "M6 4h12v16l-6-4-6 4V4Z",
};

async function ask(act, more = {}) {
  const answer = await fetch("minichat/desk", { method: "POST", body: JSON.stringify({ do: act, ...more }) });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.detail);
  const before = desk.state;
  desk.state = said;
  named(said);
  if (said.owner) watched(before);
  return said;
}

// Ask, and say in a notice what went wrong.
async function tell(act, more) {
  try {
    return await ask(act, more);
  } catch (error) {
    notice(error.message === "Failed to fetch" ? "The server cannot be reached: try again in a moment." : error.message);
    return null;
  }
}

// The name of the model that answers, what is to be known of it, and who else could.
function named({ model, knows, choice }) {
  const shown = ui("#mc-title code");
  if (shown && shown.textContent !== model) shown.textContent = model;
  const about = ui("#mc-about");
  if (about && knows !== undefined) {
    const place = about.querySelector(".prose") ?? about;
    if (place.dataset.model !== model) Object.assign(place, { innerHTML: knows }).dataset.model = model;
    about.hidden = !knows;
  }
  if (choice) offer(choice, model);
  showSystem();
}

// Among the models that are loaded each visitor may choose who answers them.
function offer(names, model) {
  const label = ui("#mc-chooser label");
  if (!label) return;
  const select = label.querySelector("select");
  const now = JSON.stringify([names, model]);
  if (select.dataset.shown === now) return; // an open list would close
  select.dataset.shown = now;
  select.setAttribute("aria-label", "Model");
  select.replaceChildren(...names.map((name) => make("option", { value: name, textContent: name, selected: name === model })));
  select.onchange = async () => {
    const said = await tell("choose", { name: select.value });
    if (said) notice(`${said.model} answers you now.`);
    else select.value = model;
  };
  label.hidden = names.length < 2;
}

async function openDesk() {
  const button = ui("#mc-teach");
  const state = await ask("state").catch(() => null);
  if (!state?.owner) return;
  button.hidden = false;
  button.onclick = openPanel;
  dress();
}

// --- Under a reply.

function thumbs(bar, node) {
  const wanted = desk.state?.owner && node?.role === "assistant" && !node.partial;
  const state = wanted ? `${node.id} ${node.mark ?? ""} ${node.right ?? ""}` : "";
  if ((bar.dataset.thumbs ?? "") === state) return;
  bar.dataset.thumbs = state;
  bar.querySelector(".mc-thumbs")?.remove();
  if (!wanted) return;
  const button = (icon, label, act, pressed) => {
    const made = make("button", { type: "button", ariaLabel: label, title: label, onclick: act });
    if (pressed !== undefined) made.setAttribute("aria-pressed", String(pressed));
    made.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${ICONS[icon]}"/></svg>`;
    return made;
  };
  const group = make("span", { className: "mc-thumbs" },
    button("up", "Good reply: keep it", () => good(node), node.mark === "up"),
    button("down", "Wrong reply: write the right one", () => wrong(node), node.mark === "down"),
    button("keep", "Keep this conversation", () => keepConversation(node)));
  if (node.right) group.append(make("span", { className: "mc-corrected", textContent: "corrected", title: node.right }));
  bar.insertBefore(group, bar.querySelector(".mc-own")); // always in the same place
}

// The conversation up to a reply, as the server keeps it.
async function upTo(node) {
  const messages = branch(page.chat, node.id).map(({ role, text, pictures, mark, right }) => ({ role, text, pictures, mark, right }));
  const names = [...new Set(messages.flatMap((message) => message.pictures))];
  return { system: page.chat.system, messages, files: names.length ? await upload(await lacking(names)) : {} };
}

async function marked(node, mark, right) {
  const { mark: markBefore, right: rightBefore } = node;
  Object.assign(node, { mark, right });
  const act = mark === "up" || right ? "keep" : "drop";
  if (await tell(act, await upTo(node))) {
    if (act === "keep") notice(`Kept. ${counted(desk.state)}`);
  } else Object.assign(node, { mark: markBefore, right: rightBefore });
  await save();
}

const counted = ({ records }) => (records === 1 ? "There is 1 record to learn from." : `There are ${records} records to learn from.`);

const good = (node) => (node.mark === "up" ? marked(node, undefined, undefined) : marked(node, "up", undefined));

async function wrong(node) {
  const marking = node.mark === "down" ? null : marked(node, "down", undefined); // meanwhile one may write
  const field = make("textarea", { value: node.right ?? node.text, rows: 3 });
  field.setAttribute("aria-label", "The right reply");
  const open = make("dialog", { className: "mc-right", onclose: () => open.remove() },
    make("h2", { textContent: "What is the right reply?" }), field,
    make("div", { className: "mc-row" },
      make("button", { type: "button", textContent: "Keep", className: "mc-first", onclick: done }),
      make("button", { type: "button", textContent: "Cancel", onclick: () => open.close() })));
  field.onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    done();
  };
  document.body.append(open);
  open.showModal();
  field.select();

  async function done() {
    const right = field.value.trim();
    if (!right) return;
    open.close();
    await marking;
    await marked(node, "down", right);
  }
}

async function keepConversation(node) {
  if (await tell("keep", { ...(await upTo(node)), whole: true })) notice(`The conversation is kept. ${counted(desk.state)}`);
}

// --- The panel: which model answers, the set, and teaching.

function openPanel() {
  if (ui(".mc-desk")) return;
  const close = () => panel.close();
  const panel = make("dialog", { className: "mc-panel mc-desk", onclose: () => (panel.remove(), follow()) },
    make("header", {}, make("h2", { textContent: "Teach" }), make("button", { type: "button", textContent: "Close", onclick: close })),
    make("section", { id: "mc-models" }),
    make("section", { id: "mc-course" }),
    make("section", { id: "mc-set" }));
  document.body.append(panel);
  panel.showModal();
  models();
  course();
  records();
  follow();
}

async function models() {
  const place = ui("#mc-models");
  place.replaceChildren(make("h3", { textContent: "Which model answers" }), make("p", { textContent: "Looking for models…" }));
  const said = await tell("models");
  if (!said) return;
  const choice = make("select");
  choice.setAttribute("aria-label", "Model");
  choice.append(...said.models.map((name) => make("option", { value: name, textContent: name, selected: name === said.using })));
  place.replaceChildren(make("h3", { textContent: "Which model answers" }),
    make("div", { className: "mc-row" }, choice,
      make("button", { type: "button", textContent: "Use", onclick: () => choice.value !== desk.state.using && use(choice.value) })),
    make("p", { textContent: "It answers all who are on this page. A reply that is being written ends by the model before." }));
}

async function use(name) {
  const told = notice(`Loading ${name}…`);
  const said = await tell("use", { name });
  told.remove();
  if (!said) return;
  notice(`${said.model} answers now.`);
  if (ui("#mc-models")) models();
  course();
}

// What is taught now, or was last.
function course() {
  const place = ui("#mc-course");
  if (!place) return;
  const { state } = desk;
  const { running, lines = [], done, said = [], failed, out } = state.teaching;
  const button = (textContent, onclick, more = {}) => make("button", { type: "button", textContent, onclick, ...more });
  const few = state.pictures < state.least ? ` Too few to teach: give ${state.least} different pictures or more.` : "";
  const parts = [
    make("h3", { textContent: "What it is to learn" }),
    make("p", { textContent: `${state.records} ${state.records === 1 ? "record" : "records"} with ${state.pictures} different ` +
      `${state.pictures === 1 ? "picture" : "pictures"}, in ${state.set}.${few}` }),
    make("div", { className: "mc-row" },
      button("Check", check, { disabled: !state.records }),
      running ? button("Stop", () => tell("stop").then(course), { id: "mc-stop" })
        : button("Teach", () => tell("teach").then(course), { id: "mc-go", className: "mc-first", disabled: Boolean(few) })),
  ];
  if (desk.checked) parts.push(make("pre", { id: "mc-checked", textContent: desk.checked }));
  if (out && (running || lines.length)) {
    parts.push(make("h3", { textContent: running ? `Teaching ${out}…` : done ? `${out} has been taught` : `${out} is not finished` }));
    if (done) parts.push(...said.map((text) => make("p", { className: "mc-said", textContent: text })),
      make("div", { className: "mc-row" },
        state.using === out ? make("p", { textContent: "It answers now." }) : button("Use it", () => use(out), { id: "mc-use", className: "mc-first" })));
    if (failed) parts.push(make("p", { className: "mc-said", textContent: failed, role: "alert" }));
    if (state.teaching.trained.length > 1) parts.push(curve(state.teaching));
    const told = make("pre", { id: "mc-told", textContent: lines.join("\n"), tabIndex: 0 });
    told.setAttribute("aria-label", "What teaching says");
    parts.push(told);
  }
  const focused = document.activeElement?.id;
  place.replaceChildren(...parts);
  if (focused && place.querySelector(`#${focused}`)) place.querySelector(`#${focused}`).focus();
  ui("#mc-told")?.scrollTo(0, 1e9);
}

async function check() {
  const said = await tell("check");
  desk.checked = said?.checked;
  course();
}

// The loss of each step, and of what is held out.
function curve({ trained, held }) {
  const [width, height, left, foot] = [600, 180, 64, 30];
  const all = [...trained, ...held];
  const most = Math.max(...all.map(([step]) => step));
  const top = Math.max(...all.map(([, loss]) => loss)) || 1;
  const at = ([step, loss]) => `${(left + ((width - left - 8) * step) / most).toFixed(1)},${(8 + (height - foot - 8) * (1 - loss / top)).toFixed(1)}`;
  const line = (points, kind) => `<polyline class="${kind}" points="${points.map(at).join(" ")}"/>`;
  const figure = make("figure");
  figure.innerHTML = `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="The loss of each step, from ${trained[0][1].toFixed(2)} to ${trained.at(-1)[1].toFixed(2)}">
    <path class="axis" d="M${left} 8V${height - foot}H${width - 8}"/>
    <text x="${left - 6}" y="20" text-anchor="end">${top.toFixed(1)}</text><text x="${left - 6}" y="${height - foot}" text-anchor="end">0</text>
    <text x="${width - 8}" y="${height - 4}" text-anchor="end">step ${most}</text>${line(trained, "trained")}${line(held, "held")}</svg>
    <figcaption><i class="trained"></i>loss <i class="held"></i>of what is held out</figcaption>`;
  return figure;
}

// --- The records of the set.

async function records(after = 0) {
  const place = ui("#mc-set");
  const said = await tell("list", { after });
  if (!said || !place.isConnected) return;
  if (!after) place.replaceChildren(make("h3", { textContent: "Kept replies" }), make("ul", { id: "mc-records" }));
  place.querySelector(".mc-more")?.remove();
  ui("#mc-records").append(...said.list.map(record));
  if (!said.list.length && !after) place.append(make("p", { textContent: "Nothing is kept yet: use the thumbs under a reply." }));
  if (said.more) place.append(make("button", { type: "button", className: "mc-more", textContent: "More", onclick: () => records(after + said.list.length) }));
  course();
}

function record(one) {
  const row = make("li");
  const shown = [];
  let question = "";
  let reply = 0;
  for (const message of one.messages ?? []) {
    shown.push(...message.pictures.map((number) => make("img", { src: `minichat/desk/${one.id}/${number}`, alt: "A picture of this record", loading: "lazy" })));
    if (message.role === "assistant") shown.push(answer(message.text, question, reply++));
    else {
      question = message.text;
      if (question) shown.push(make("p", { className: "mc-asked", textContent: question }));
    }
  }
  if (one.broken !== undefined) shown.push(make("p", { textContent: `This line cannot be read: ${one.broken}` }));
  row.append(make("div", {}, ...shown), make("button", { type: "button", textContent: "Delete", onclick: remove }));
  return row;

  function answer(text, asked, number) {
    const field = make("textarea", { value: text, rows: 1 });
    field.setAttribute("aria-label", `The reply to “${asked}”`);
    field.onkeydown = (event) => {
      if (event.key === "Escape" && field.value !== text) {
        event.preventDefault(); // the panel stays
        field.value = text;
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        field.blur();
      }
    };
    field.onblur = async () => {
      const words = field.value.trim();
      if (!words || words === text) return (field.value = text);
      await tell("edit", { id: one.id, reply: number, text: words });
      records();
    };
    return field;
  }

  async function remove() {
    if (!window.confirm("Delete this record for good?")) return;
    await tell("delete", { id: one.id });
    records();
  }
}

// --- While something is taught, or the panel is open, the state is asked for again and again.

function follow() {
  clearTimeout(desk.due);
  const open = Boolean(ui(".mc-desk"));
  if (!open && !desk.state.teaching.running) return;
  desk.due = setTimeout(async () => {
    await ask("state").catch(() => null);
    follow();
  }, open ? 1500 : 5000);
}

// What the owner is to see of a new state.
function watched(before) {
  const { teaching } = desk.state;
  const button = ui("#mc-teach");
  if (button) button.textContent = teaching.running ? "Teaching…" : "Teach";
  if (before?.teaching?.running && !teaching.running && !ui(".mc-desk")) notice("Teaching has ended: see under “Teach”.");
  if (JSON.stringify(before?.teaching) !== JSON.stringify(teaching) || before?.using !== desk.state.using) course();
  if (teaching.running && !before?.teaching?.running) follow();
}
