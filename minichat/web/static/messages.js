// --- What stands under and in a message: its versions, edits by the keyboard, and pictures to enlarge.

// Show this version of a message, and what was last said after it.
async function turnTo(node) {
  await idle();
  page.chat.leaf = lastBelow(page.chat, node).id;
  await save();
  ui("#mc-show").click();
}

function versions(all, place) {
  const step = (to, text, label) =>
    make("button", { type: "button", textContent: text, ariaLabel: label, disabled: !all[to], onclick: () => turnTo(all[to]) });
  return make("span", { className: "mc-own mc-versions" },
    step(place - 1, "‹", "Version before"), `${place + 1}/${all.length}`, step(place + 1, "›", "Version after"));
}

// The last reply was cut, or stopped: it goes on where it ended.
const goOn = () => busy() || ui("#mc-on").click();

// --- What a reply took, where the settings ask for it.

const FIGURES = "minichat.figures";

function figures(input) {
  input.checked = Boolean(localStorage.getItem(FIGURES));
  input.addEventListener("change", () => {
    if (input.checked) localStorage.setItem(FIGURES, "shown");
    else localStorage.removeItem(FIGURES);
    dress();
  });
}

const count = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const digits = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });
const number = (value) => (value < 10 ? digits : count).format(value);

function measured({ tokens, first, rate, used, context }) {
  const rows = [
    ["Tokens of the reply", count.format(tokens)],
    ["To the first one", first < 1 ? `${count.format(1000 * first)} ms` : `${number(first)} s`],
    ["Tokens a second", rate === null ? "–" : number(rate)],
    ["Context used", context === null ? count.format(used) : `${count.format(used)} of ${count.format(context)}`],
  ];
  const line = `${rows[0][1]} ${tokens === 1 ? "token" : "tokens"}${rate === null ? "" : ` · ${rows[2][1]} a second`}`;
  return make("details", { className: "mc-own mc-figures" }, make("summary", { textContent: line }),
    make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })])));
}

// --- Where the model looked for a reply: its pictures under a heat map, for all words or some, by all queries or one.

const EYE = '<svg viewBox="0 0 24 24" width="20" height="20" fill="none" stroke="currentColor" stroke-width="1.6" aria-hidden="true"><path d="M2 12s3.6-6.5 10-6.5S22 12 22 12s-3.6 6.5-10 6.5S2 12 2 12z"/><circle cx="12" cy="12" r="2.8"/></svg>';
const PAGES = '<svg viewBox="0 0 24 24" width="18" height="18" fill="none" stroke="currentColor" stroke-width="1.6" aria-hidden="true"><path d="M8 8h12v12H8zM16 8V4H4v12h4"/></svg>';
let lookedFor = 0; // the place of the reply

function look(place) {
  if (busy()) return;
  lookedFor = place;
  ui("#mc-look").click();
}

// Tokens that spell one word, with the blanks around them: [[word, [tokens]]].
function wordsOf(pieces) {
  const words = [];
  pieces.forEach((piece, token) => {
    if (!words.length || /^\s/.test(piece) || /\s$/.test(words.at(-1)[0])) words.push(["", []]);
    words.at(-1)[0] += piece;
    if (/[\p{L}\p{N}]/u.test(piece) || !words.at(-1)[1].length) words.at(-1)[1].push(token); // not a full stop behind it
  });
  return words.filter(([word]) => word.trim());
}

//   said: {words: [pieces], weights (R, I, n), maps (I, n, side²), side, boxes, pictures, share, name}
function looked(said) {
  if (!said?.words) return;
  const words = wordsOf(said.words);
  const chosen = new Set();
  const queries = said.maps[0].length;
  const views = said.pictures.map((html) => {
    const holder = make("div", { innerHTML: html });
    const picture = make("img", { src: holder.querySelector("img").src, alt: "The picture that was looked at" });
    const view = make("div", { className: "mc-seen" }, picture, make("canvas", { width: said.side, height: said.side }));
    picture.onload = () => view.style.setProperty("--ratio", picture.naturalWidth / picture.naturalHeight);
    return view;
  });
  const slider = make("input", { type: "range", min: 0, max: queries, value: 0, ariaLabel: "Query", oninput: draw });
  const label = make("output", {});
  const chips = words.map((word) => make("button", { type: "button", textContent: word[0].trim(), ariaPressed: "false", onclick: (event) => {
    if (!chosen.delete(word)) chosen.add(word);
    event.currentTarget.ariaPressed = String(chosen.has(word));
    draw();
  } }));
  const told = said.share
    ? `Checked on drawn scenes: in ${Math.round(100 * said.share)} % of 200, the thing that a colour answer names got the most weight. It shows what was attended to, which is not always why.`
    : `Not checked for ${said.name}: attention shows what was attended to, which is not always why.`;
  const dialog = make("dialog", { className: "mc-looks", ariaLabel: "Where it looked", onclose: () => dialog.remove() },
    make("h2", { textContent: "Where it looked" }),
    make("div", { className: "mc-views" }, ...views),
    make("p", { textContent: "For the words you choose, or all of them:" }), make("div", { className: "mc-words" }, ...chips),
    make("label", { className: "mc-query" }, slider, label), make("p", { className: "mc-told", textContent: told }),
    make("button", { type: "button", className: "mc-close", textContent: "Close", onclick: () => dialog.close() }));

  function draw() {
    const tokens = chosen.size ? [...chosen].flatMap(([, each]) => each) : said.words.map((_, token) => token);
    const query = Number(slider.value) - 1;
    const mean = (picture, q) => tokens.reduce((sum, token) => sum + said.weights[token][picture][q], 0) / tokens.length;
    const maps = said.maps.map((of, picture) =>
      query < 0 ? of[0].map((_, patch) => of.reduce((sum, map, q) => sum + mean(picture, q) * map[patch], 0)) : of[query]);
    label.textContent = query < 0 ? `All ${queries} queries together` :
      `Query ${query + 1}: ${count.format(100 * said.maps.reduce((sum, _, picture) => sum + mean(picture, query), 0))} % of the weight`;
    slider.setAttribute("aria-valuetext", label.textContent);
    const most = Math.max(...maps.flat());
    views.forEach((view, picture) => {
      const canvas = view.querySelector("canvas");
      const [left, top, right, bottom] = said.boxes[picture].map((part) => 100 * part);
      Object.assign(canvas.style, { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` });
      paint(canvas, maps[picture].map((value) => value / most), said.side);
    });
  }
  document.body.append(dialog);
  dialog.showModal();
  draw();
}

// Dark where nothing was looked at, by way of red and amber to the picture as it is.
const HEAT = [[8, 8, 30, 0.8], [150, 30, 60, 0.62], [250, 130, 30, 0.42], [255, 225, 120, 0.1]];

function paint(canvas, values, side) {
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(side, side);
  values.forEach((value, place) => {
    const at = value ** 0.75 * (HEAT.length - 1);
    const [from, to] = [HEAT[Math.floor(at)], HEAT[Math.ceil(at)]];
    from.forEach((part, k) => (pixels.data[4 * place + k] = (k === 3 ? 255 : 1) * (part + (at % 1) * (to[k] - part))));
  });
  context.putImageData(pixels, 0, 0);
}

// Gradio has a bar of buttons under each message, and makes it anew when it likes.
function dress() {
  const shown = branch(page.chat);
  document.querySelectorAll("#mc-chat .message-buttons .icon-button-wrapper").forEach((bar, place) => {
    const node = shown[place];
    thumbs(bar, node);
    const all = node ? siblings(page.chat, node) : [];
    const more = place === shown.length - 1 && node.role === "assistant" && node.id !== page.growing && (node.cut || node.partial);
    const figures = localStorage.getItem(FIGURES) && node?.figures;
    const looks = node?.role === "assistant" && node.id !== page.growing && node.text && shown.slice(0, place).some((each) => each.pictures.length);
    const boxed = !bar.querySelector("[aria-label='Copy message']") && node?.role === "assistant" && node.id !== page.growing && navigator.clipboard;
    const state = JSON.stringify([node?.id, all.map((each) => each.id), more, figures, looks, Boolean(boxed)]);
    if (bar.dataset.dressed === state) return;
    bar.dataset.dressed = state;
    bar.querySelectorAll(".mc-own").forEach((own) => own.remove());
    if (all.length > 1) bar.append(versions(all, all.indexOf(node)));
    if (more) bar.append(make("button", { type: "button", className: "mc-own mc-on", textContent: "Continue", onclick: goOn }));
    if (boxed) bar.append(make("button", { type: "button", className: "mc-own mc-look", ariaLabel: "Copy with its boxes", title: "Copy with its boxes", innerHTML: PAGES, onclick: () => navigator.clipboard.writeText(node.text) }));
    if (looks) bar.append(make("button", { type: "button", className: "mc-own mc-look", ariaLabel: "Where it looked", title: "Where it looked", innerHTML: EYE, onclick: () => look(place) }));
    if (figures) bar.append(measured(figures));
  });
}

// The branch ends before the last question, whose words and pictures go back into the box.
async function undo() {
  await idle();
  const asked = branch(page.chat).findLast((node) => node.role === "user");
  if (asked) {
    page.chat.leaf = asked.parent;
    await save();
    const files = Object.values(await upload(asked.pictures)).map((path) => asFile(path, "picture"));
    put({ text: asked.text, files });
  }
  return [await talk()];
}

// A picture large, with its boxes. Of a model that knows boxes one may point at a part of it, to ask what is there.
async function enlarge(picture) {
  const held = await store.get("pictures", picture.dataset.name);
  const points = desk.state?.boxes || ui("#mc-chat .mc-where");
  const shown = make("img", { src: held?.data ?? picture.src, alt: picture.alt, draggable: false });
  const view = make("div", { className: "mc-boxed" }, shown, ...[...(picture.closest(".mc-boxed")?.querySelectorAll(".mc-where") ?? [])].map((box) => box.cloneNode(true)));
  const large = make("dialog", { className: "mc-large", ariaLabel: "The picture, large", onclick: () => large.close(), onclose: () => large.remove() },
    view, make("div", {}, ...(points ? [make("span", { textContent: "Click, or drag over a part, to ask about it." })] : []), make("button", { type: "button", textContent: "Close" })));
  shown.onload = () => view.style.setProperty("--ratio", shown.naturalWidth / shown.naturalHeight);
  if (points) pointAt(view, (box) => (large.close(), askAbout(box)));
  document.body.append(large);
  large.showModal();
}

const AROUND = 0.08; // of the picture's sides: what lies so near to a click is meant

//   then: called with [left, top, right, bottom], in fractions of the view's sides
function pointAt(view, then) {
  const mark = make("span", { className: "mc-mark", hidden: true });
  let from = null;
  const within = (value) => Math.min(1, Math.max(0, value));
  const place = (event) => {
    const { left, top, width, height } = view.getBoundingClientRect();
    return [within((event.clientX - left) / width), within((event.clientY - top) / height)];
  };
  const span = ([x, y], [u, v]) => [Math.min(x, u), Math.min(y, v), Math.max(x, u), Math.max(y, v)];
  view.append(mark);
  view.classList.add("mc-points");
  view.onclick = (event) => event.stopPropagation();
  view.onpointerdown = (event) => {
    event.preventDefault();
    view.setPointerCapture(event.pointerId);
    from = place(event);
  };
  view.onpointermove = (event) => {
    if (!from) return;
    const [left, top, right, bottom] = span(from, place(event)).map((side) => 100 * side);
    Object.assign(mark.style, { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` });
    mark.hidden = false;
  };
  view.onpointercancel = () => ((from = null), (mark.hidden = true));
  view.onpointerup = (event) => {
    if (!from) return;
    const [left, top, right, bottom] = span(from, place(event));
    const small = right - left < 0.02 && bottom - top < 0.02;
    then((small ? [left - AROUND, top - AROUND, right + AROUND, bottom + AROUND] : [left, top, right, bottom]).map(within));
  };
}

// The box goes into the question, as MiniGPT-v2 spells it.
function askAbout(sides) {
  const spelled = `{${sides.map((side) => `<${Math.round(100 * side)}>`).join("")}}`;
  const typed = box().value.trim();
  write(typed ? `${typed} ${spelled}` : `[identify] ${spelled}`);
  box().focus();
}

function listenToMessages() {
  let due = false; // a reply that grows changes the page many times for each time that it is painted
  new MutationObserver(() => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => ((due = false), dress()));
  }).observe(ui("#mc-chat"), { subtree: true, childList: true });
  const chosen = (event) => event.target.matches(".mc-picture") && enlarge(event.target);
  window.addEventListener("click", chosen);
  window.addEventListener("keydown", (event) => {
    const { key, target } = event;
    const edited = target.closest?.(".edit-textarea");
    const menu = ui(".mc-menu[open]");
    const press = (name) => {
      event.preventDefault();
      event.stopImmediatePropagation();
      target.closest(".message-row").nextElementSibling.querySelector(`[aria-label=${name}]`).click();
    };
    if (event.isComposing) return; // a word of Japanese, say
    if (key === "Enter" && edited && !event.shiftKey) press("Submit");
    else if (key === "Enter") chosen(event);
    else if (key !== "Escape" || ui("dialog[open]")) return;
    else if (edited) press("Cancel");
    else if (menu) menu.open = false;
    else if (ui("#mc-chatbar").hasAttribute("data-open")) listing(false);
    else stop();
  }, true);
}
