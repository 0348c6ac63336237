// The page: which contract and which view are shown, and what the views share.

import * as api from "./api.js";
import { answerCard, spoken } from "./card.js";
import { choiceCard } from "./choice.js";
import { combobox } from "./combobox.js";
import { contractBar } from "./bar.js";
import { ContractPane } from "./contract.js";
import { byId, details, el } from "./dom.js";
import { listen } from "./keys.js";
import { queueView } from "./queue.js";
import { reviewView } from "./review.js";

const KEPT = 8; // texts of contracts that are held, so that a queue that goes to and fro loads each once
const NAME = "evergreen-name";
const TWO_PANES = matchMedia("(min-width: 56rem)");

const app = {
  pane: new ContractPane(byId("text")),
  categories: [],
  contracts: [],
  picked: null, // the contract that is chosen; the queue shows others
  current: null, // the card whose quotes are marked, and which keys act on
  wide: () => TWO_PANES.matches,
  name: () => remember(NAME) || undefined,
  orderOf: (answer) => app.categories.findIndex(({ name }) => name === answer.category),
  remember, openContract, askForContract,
  say: (words) => { byId("status").textContent = words; },
  fail, clear,
};
app.drawBar = contractBar(app);

/** What this browser keeps under a key; with a value, keeps it. Nothing where it may keep nothing. */
function remember(key, value) {
  const storage = key.startsWith("evergreen-review") ? "sessionStorage" : "localStorage";
  try {
    if (value !== undefined) window[storage].setItem(key, value);
    return window[storage].getItem(key);
  } catch {
    return value ?? null;
  }
}

/** Shows an error in words; null takes the last one away. */
function fail(error) {
  if (error?.name === "AbortError") return;
  const box = byId("alert");
  box.firstElementChild.textContent = error ? error.message : "";
  box.hidden = !error;
}

/** No answer is shown: no marks, nothing for keys to act on. */
function clear() {
  app.current = null;
  for (const layer of ["quotes", "spans", "match"]) app.pane.mark(layer, []);
  app.drawBar();
}

const texts = new Map();
let wanted = null;

/** Shows a contract's text; whether it is the one to be seen in the end. */
async function openContract(id) {
  wanted = id;
  if (app.pane.id === id) return true;
  let text = texts.get(id);
  try {
    if (text === undefined) ({ text } = await api.contract(id));
  } catch (error) {
    if (wanted === id) fail(error);
    return false;
  }
  texts.set(id, text);
  if (texts.size > KEPT) texts.delete(texts.keys().next().value);
  if (wanted !== id) return false;
  if (app.pane.id === id) return true;
  app.current = null;
  app.pane.show(id, text);
  byId("contract-name").textContent = id;
  byId("contract-size").textContent = `${app.pane.offsets.length.toLocaleString("en")} characters`;
  app.drawBar();
  return true;
}

function askForContract() {
  fail(new Error("Choose a contract first."));
  byId("contract-input").focus();
}

/** Questions and comparisons, put to the contract that is chosen. */
function askView() {
  const out = byId("ask-out");
  const input = byId("question");
  let card = null;
  let waiting = null; // what a question that is under way can be called off by
  let arrived = null; // makes the card of an answer and tells of it, once its contract is in sight

  function put(ask, make, tell) {
    return async (event) => {
      event.preventDefault();
      suggestions.close();
      const typed = input.value.trim();
      if (!app.picked) return askForContract();
      if (!typed) {
        fail(new Error("Ask something, or choose one of the 41 clauses."));
        return input.focus();
      }
      const category = app.categories.find(({ name }) => name.toLowerCase() === typed.toLowerCase());
      drop();
      fail(null);
      waiting = new AbortController();
      const { signal } = waiting;
      const contract = app.picked;
      out.replaceChildren(el("p", { class: "waiting" }, "Reading the contract…"));
      app.say("Reading the contract.");
      try {
        const answer = await ask(category?.question ?? typed, contract, signal);
        if (signal.aborted) return;
        arrived = () => {
          card = make(answer, category?.name);
          out.replaceChildren(card.root);
          card.show();
          card.heading.focus({ preventScroll: app.wide() });
          app.say(tell(answer));
        };
        if (view === "ask") arrived();
      } catch (error) {
        if (signal.aborted) return;
        out.replaceChildren();
        fail(error);
      }
    };
  }

  function drop() {
    waiting?.abort();
    card = arrived = null;
    out.replaceChildren();
    if (view === "ask") clear();
  }

  const suggestions = combobox(input, byId("question-list"),
    () => app.categories.map(({ name, question }) => ({ label: name, note: details(question) })),
    ({ label }) => { input.value = label; });
  byId("ask-form").addEventListener("submit", put(api.ask, (answer) => answerCard(app, answer), spoken));
  byId("compare").addEventListener("click",
    put(api.candidates, (pair, category) => choiceCard(app, pair, category), () => "Two answers. Which one is better?"));
  return {
    open: async () => {
      if (app.picked && !(await openContract(app.picked))) return;
      if (view !== "ask") return;
      if (card) card.show();
      else if (arrived) arrived();
      else clear();
    },
    leave: () => {},
    drop,
  };
}

const views = { ask: askView(), queue: queueView(app), review: reviewView(app) };
let view = "ask";

function open(name) {
  views[view].leave();
  view = name;
  for (const one of Object.keys(views)) byId(`view-${one}`).hidden = one !== name;
  for (const one of document.querySelectorAll("[data-view]")) {
    if (one.dataset.view === name) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
  byId("picker").hidden = name === "queue";
  fail(null);
  return views[name].open();
}

async function pick(id) {
  byId("contract-input").value = id;
  if (id === app.picked) return;
  app.picked = id;
  views.ask.drop(); // it is about the contract before
  history.replaceState(null, "", `#${encodeURIComponent(id)}`);
  fail(null);
  if (await openContract(id)) views[view].picked?.();
}

function contractPicker() {
  const input = byId("contract-input");
  const options = () => app.contracts.map(({ id, n_characters }) => (
    { label: id, note: `${n_characters.toLocaleString("en")} characters` }));
  combobox(input, byId("contract-list"), options, ({ label }) => pick(label));
  input.addEventListener("focus", () => input.select());
  input.addEventListener("change", () => {
    const id = input.value.trim();
    if (app.contracts.some((contract) => contract.id === id)) pick(id);
    else input.value = app.picked ?? "";
  });
}

function signing() {
  const [dialog, field, opener] = [byId("name-dialog"), byId("name"), byId("signed")];
  const draw = () => { opener.textContent = app.name() ? `Signed ${app.name()}` : "Not signed"; };
  opener.addEventListener("click", () => {
    field.value = app.name() ?? "";
    dialog.showModal();
  });
  dialog.addEventListener("close", () => {
    remember(NAME, field.value.trim());
    draw();
  });
  draw();
}

async function begin() {
  contractPicker();
  signing();
  listen(remember);
  byId("alert").querySelector("button").addEventListener("click", () => fail(null));
  for (const one of document.querySelectorAll("[data-view]")) one.addEventListener("click", () => open(one.dataset.view));
  await open("ask");
  try {
    [app.contracts, app.categories] = await Promise.all([api.contracts(), api.categories()]);
  } catch (error) {
    return fail(error);
  }
  const named = fromHash();
  if (app.contracts.some(({ id }) => id === named)) await pick(named);
  else if (app.contracts.length === 1) await pick(app.contracts[0].id);
  else if (!app.contracts.length) fail(new Error("There is no contract here yet. Read some in with `evergreen index`."));
}

function fromHash() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return null;
  }
}

begin();
