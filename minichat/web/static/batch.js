// --- Captions of many pictures: a few are sent at a time (`captions.py`), and the table fills as their captions come.

const MOST = 1000; // pictures
const GROUP = 6, GROUP_BYTES = 60 * 2 ** 20, PICTURE_LIMIT = 20 * 2 ** 20; // pictures that travel together, and bytes
const PROMPTS = ["Describe the picture in one sentence.", "What is in the picture?", "What colours are there?"];

//   rows: {name, file, row: its line of the table, small: a picture's address, sent: what travels, said}
//     said: {caption, cut, boxes} or {error}; null: nothing yet
//   running: the AbortController of what is being done
const batch = { rows: [], running: null, prompt: null };
const wanting = () => batch.rows.filter((one) => one.said?.caption === undefined);

const pushButton = (textContent, onclick, more = {}) => make("button", { type: "button", textContent, onclick, ...more });

function openBatch() {
  const given = desk.state?.caption ?? "";
  const prompt = make("textarea", { rows: 1, value: batch.prompt ?? given, oninput: () => (batch.prompt = prompt.value) });
  const choice = make("select", { ariaLabel: "Questions to choose from", onchange: () => ((batch.prompt = prompt.value = choice.value), (choice.selectedIndex = 0)) },
    make("option", { textContent: "Choose another question…", disabled: true, selected: true }),
    ...[...new Set([given, ...PROMPTS])].filter(Boolean).map((textContent) => make("option", { textContent })));
  const input = (more) => make("input", { type: "file", multiple: true, hidden: true, onchange: ({ target }) => (addPictures([...target.files]), (target.value = "")), ...more });
  const pictures = input({ accept: ui("#mc-box input[type=file]")?.accept || "image/*" });
  const folder = input({ webkitdirectory: true });
  const panel = make("dialog", { className: "mc-panel mc-batch", ariaLabel: "Captions", onclose: () => panel.remove() },
    make("header", {}, make("h2", { textContent: "Captions" }), pushButton("Close", () => panel.close())),
    make("p", { textContent: `For up to ${count.format(MOST)} pictures. They are kept nowhere, and the table goes with this page: save it.` }),
    make("div", { className: "mc-row" }, pushButton("Add pictures", () => pictures.click()),
      pushButton("Add a folder", () => folder.click(), { hidden: matchMedia("(pointer: coarse)").matches }), pictures, folder),
    make("label", { className: "mc-prompt" }, "What to ask of each picture", prompt), choice,
    make("div", { className: "mc-row", id: "mc-batch-act" }),
    make("div", { id: "mc-batch-told", role: "status" }),
    make("table", {}, make("thead", {}, make("tr", {}, make("th", { textContent: "Picture", scope: "col" }), make("th", { textContent: "Caption", scope: "col" }))),
      make("tbody", {}, ...batch.rows.map((one) => one.row))));
  document.body.append(panel);
  panel.showModal();
  tally();
}

function addPictures(files) {
  const pictures = files.filter(isPictureFile);
  const taken = pictures.slice(0, MOST - batch.rows.length);
  for (const file of taken) {
    const one = { name: file.webkitRelativePath || file.name, file, row: make("tr"), said: null };
    batch.rows.push(one);
    showRow(one);
    ui(".mc-batch tbody").append(one.row);
  }
  const left = [];
  if (files.length > pictures.length) left.push(`${files.length - pictures.length} of ${files.length} files are no pictures.`);
  if (pictures.length > taken.length) left.push(`${pictures.length - taken.length} pictures are left out: ${count.format(MOST)} at most.`);
  if (left.length) notice(left.join(" "));
  tally();
}

function showRow({ row, name, said, small }) {
  const cell = make("td", { textContent: said ? said.error ?? said.caption : "" });
  cell.toggleAttribute("data-failed", said?.error !== undefined);
  if (said?.cut) cell.append(make("i", { textContent: " (cut at the longest reply)" }));
  row.replaceChildren(make("th", { scope: "row" }, ...(small ? [make("img", { src: small, alt: "" })] : []), name), cell);
}

// How far it is, and what one can do now.
function tally() {
  const place = ui("#mc-batch-act");
  if (!place) return;
  const { rows, running } = batch;
  const left = wanting().length;
  const failed = rows.filter((one) => one.said?.error !== undefined).length;
  const done = rows.length - left;
  const act = failed && failed === left ? "Try again" : done + failed && left ? "Go on" : "Start";
  const focused = document.activeElement?.parentElement === place;
  place.replaceChildren(
    running ? pushButton("Stop", () => running.abort(), { className: "mc-first" })
      : pushButton(act, startBatch, { className: "mc-first", disabled: !left }),
    pushButton("Save as CSV", () => saveBatch("csv"), { disabled: !(done + failed) }),
    pushButton("Save as JSON lines", () => saveBatch("jsonl"), { disabled: !(done + failed) }),
    pushButton("Clear", clearBatch, { disabled: Boolean(running) || !rows.length }));
  if (focused) place.querySelector(":enabled")?.focus();
  const told = `${count.format(done)} of ${count.format(rows.length)} ${rows.length === 1 ? "picture has a caption" : "pictures have a caption"}`;
  ui("#mc-batch-told").replaceChildren(...(rows.length ? [make("progress", { max: rows.length, value: done + failed, ariaLabel: "Progress" }),
    make("p", { textContent: failed ? `${told}; ${count.format(failed)} failed.` : `${told}.` })] : []));
  ui(".mc-batch table").hidden = !rows.length;
}

function clearBatch() {
  for (const { small } of batch.rows) if (small) URL.revokeObjectURL(small);
  batch.rows = [];
  ui(".mc-batch tbody").replaceChildren();
  tally();
}

// All that have no caption yet, group after group: while one is answered, the next is on its way.
async function startBatch() {
  const stop = (batch.running = new AbortController());
  const left = wanting();
  for (const one of left) (one.said = null), showRow(one);
  tally();
  let before = Promise.resolve();
  try {
    while (left.length) {
      const group = await nextGroup(left);
      const paths = group.length ? await uploaded(group, stop.signal) : [];
      await before;
      if (group.length) before = captioned(group, paths, stop.signal);
      before.catch(() => {}); // it is told where it is waited for
    }
    await before;
  } catch (error) {
    if (!stop.signal.aborted) notice(error instanceof TypeError ? "The server cannot be reached: go on in a moment." : error.message);
    stop.abort();
  }
  batch.running = null;
  tally();
}

// Pictures that travel together, large ones made small.
async function nextGroup(left) {
  const group = [];
  let bytes = 0;
  while (left.length && group.length < GROUP) {
    const one = left[0];
    one.sent ??= await shrunk(one.file);
    one.small ??= URL.createObjectURL(one.sent);
    if (one.sent.size > PICTURE_LIMIT) told(one, { error: `It has ${count.format(one.sent.size / 2 ** 20)} MB, which is more than 20 MB: make it smaller.` });
    else if (group.length && bytes + one.sent.size > GROUP_BYTES) break;
    else group.push(one);
    bytes += one.sent.size;
    left.shift();
  }
  return group;
}

async function uploaded(group, signal) {
  const form = new FormData();
  for (const one of group) form.append("files", one.sent, one.file.name);
  const answer = await fetch("gradio_api/upload", { method: "POST", body: form, signal });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

async function captioned(group, files, signal) {
  const body = JSON.stringify({ files, prompt: batch.prompt, settings: settings.held() });
  const answer = await fetch("minichat/captions", { method: "POST", signal, body });
  if (!answer.ok) throw new Error((await answer.json()).detail);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part; !(part = await reader.read()).done; ) {
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const { place, ...said } of lines.map(JSON.parse)) {
      if (place === undefined) throw new Error(said.error); // of all that are left
      told(group[place], said);
    }
  }
  if (group.some((one) => !one.said)) throw new TypeError("The connection broke.");
}

function told(one, said) {
  Object.assign(one, { said, sent: null });
  showRow(one);
  tally();
}

// As `minichat caption` writes them.
function saveBatch(kind) {
  const done = batch.rows.filter((one) => one.said);
  const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = kind === "csv"
    ? [["image", "caption", "finish", "error"], ...done.map(({ name, said }) => [name, said.caption ?? "", said.cut ? "length" : "", said.error ?? ""])]
        .map((row) => row.map(cell).join(","))
    : done.map(({ name, said: { cut, ...said } }) => JSON.stringify({ image: name, ...said, ...(cut ? { finish: "length" } : {}) }));
  saveFile(lines.map((line) => line + "\n").join(""), kind === "csv" ? "text/csv" : KINDS.jsonl, `captions.${kind}`);
}
