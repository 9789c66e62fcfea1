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

// Gradio has a bar of buttons under each message, and makes it anew when it likes.
function dress() {
  const shown = branch(page.chat);
  document.querySelectorAll("#mc-chat .message-buttons .icon-button-wrapper").forEach((bar, place) => {
    const node = shown[place];
    thumbs(bar, node);
    const all = node ? siblings(page.chat, node) : [];
    const more = place === shown.length - 1 && node.role === "assistant" && node.id !== page.growing && (node.cut || node.partial);
    const figures = localStorage.getItem(FIGURES) && node?.figures;
    const state = JSON.stringify([node?.id, all.map((each) => each.id), more, figures]);
    if (bar.dataset.dressed === state) return;
    bar.dataset.dressed = state;
    bar.querySelectorAll(".mc-own").forEach((own) => own.remove());
    if (all.length > 1) bar.append(versions(all, all.indexOf(node)));
    if (more) bar.append(make("button", { type: "button", className: "mc-own mc-on", textContent: "Continue", onclick: goOn }));
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

async function enlarge(picture) {
  const held = await store.get("pictures", picture.dataset.name);
  const large = make("dialog", { className: "mc-large", onclick: () => large.close(), onclose: () => large.remove() },
    make("img", { src: held?.data ?? picture.src, alt: picture.alt }), make("button", { type: "button", textContent: "Close" }));
  document.body.append(large);
  large.showModal();
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
