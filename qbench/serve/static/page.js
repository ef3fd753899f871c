/** The page: which conversation is open, what is asked, and what the keys do. */

import * as api from "./api.js";
import { make, Turn } from "./turn.js";

const PRESETS = [
  ["None", ""],
  ["Concise", "Answer in one or two sentences."],
  ["Step by step", "Think step by step, then give the answer on a line of its own."],
  ["For a child", "Explain as to a curious ten-year-old, in short sentences and with an example."],
  ["Code only", "Answer with code alone, without explanations around it."],
  ["Only what is certain", "Say only what you are certain of. If you do not know, say that you do not know."],
];
const CUSTOM = "Your own";
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const KEPT = "qbench-settings";

const $ = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const narrow = matchMedia("(max-width: 60rem)");

/** What the page knows; `shown` are the open conversation's turns. */
const state = { about: null, open: null, shown: [], streaming: null, editing: false };

const say = (text) => ($.status.textContent = text);
const last = () => state.shown.at(-1);

// ---- settings

function fillPresets() {
  $.preset.append(...[...PRESETS.map(([name]) => name), CUSTOM].map((name) => make("option", {}, name)));
  $.preset.addEventListener("change", () => {
    const preset = PRESETS.find(([name]) => name === $.preset.value);
    if (preset) $.system.value = preset[1];
    else $.system.focus();
    keepSettings();
  });
  $.system.addEventListener("input", choosePreset);
}

function choosePreset() {
  $.preset.value = PRESETS.find(([, text]) => text === $.system.value)?.[0] ?? CUSTOM;
}

function keepSettings() {
  const values = Object.fromEntries(["system", ...NUMBERS].map((name) => [name, $[name].value]));
  localStorage.setItem(KEPT, JSON.stringify({ ...values, blind: $.blind.checked }));
}

function recallSettings() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEPT)) ?? {};
    for (const name of ["system", ...NUMBERS]) if (name in kept) $[name].value = kept[name];
    $.blind.checked = kept.blind === true;
  } catch {
    localStorage.removeItem(KEPT);
  }
  choosePreset();
}

/** The settings, or null where one is out of its range: the browser says which. */
function settings() {
  const wrong = NUMBERS.map((name) => $[name]).find((field) => !field.checkValidity());
  if (wrong) {
    tune(true);
    wrong.reportValidity();
    return null;
  }
  const numbers = NUMBERS.map((name) => [name, $[name].value === "" ? null : Number($[name].value)]);
  return { system: state.about.mode === "chat" ? $.system.value : "", ...Object.fromEntries(numbers) };
}

function tune(open) {
  $.settings.hidden = !open;
  $.tune.setAttribute("aria-expanded", String(open));
}

// ---- conversations

async function refreshList() {
  const found = await api.conversations();
  $.list.replaceChildren(
    ...found.map((one) => {
      const when = new Date(one.created).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
      const link = make("a", { href: `#${one.id}` }, one.title, make("span", { class: "faint small" }, when));
      if (one.id === state.open) link.setAttribute("aria-current", "true");
      return make("li", {}, link);
    }),
  );
}

function clear() {
  state.open = null;
  state.shown = [];
  $.turns.replaceChildren();
  $.others.hidden = true;
  $.ask.hidden = false;
  edit(false);
  refresh();
}

async function open(id) {
  if (id === state.open) return;
  await stop();
  clear();
  if (id) {
    const found = await api.conversation(id);
    state.open = found.id;
    found.turns.forEach(add);
    $.others.textContent = found.others ?? "";
    $.others.hidden = !found.others;
    $.ask.hidden = found.others !== null;
    $.thread.scrollTop = $.thread.scrollHeight;
    catchUp(id);
  }
  refresh();
  await refreshList();
}

/** Look again while a turn is answered for another tab, or for this page before it was loaded again. */
function catchUp(id) {
  if (!state.shown.some((turn) => turn.streaming)) return;
  setTimeout(async () => {
    if (state.open !== id || state.streaming) return;
    const found = await api.conversation(id).catch(() => ({ turns: [] }));
    found.turns.forEach((told, place) => state.shown[place]?.update(told));
    refresh();
    catchUp(id);
  }, 500);
}

function add(told) {
  const turn = new Turn(told, state.shown.length + 1, { vote, edit: () => edit(true), again });
  state.shown.push(turn);
  $.turns.append(turn.element);
  return turn;
}

/** What depends on whether there are turns, and whether one is being answered. */
function refresh() {
  $.empty.hidden = state.shown.length > 0;
  $.more.hidden = state.open === null;
  $.send.hidden = state.streaming !== null;
  $.stop.hidden = state.streaming === null;
  // A button that was just used may have gone.
  if (document.activeElement === document.body && !narrow.matches) $.prompt.focus();
  for (const turn of state.shown) turn.offer(turn === last() && state.streaming === null && $.others.hidden);
}

// ---- asking

async function ask(prompt, replaces = null) {
  const wanted = settings();
  if (!wanted || state.streaming || !prompt.trim()) return;
  const run = { turn: null };
  state.streaming = run;
  refresh();
  say("Asking both.");
  try {
    await api.ask({ prompt, replaces, conversation: state.open, blind: $.blind.checked, settings: wanted }, (event) =>
      receive(run, event, replaces),
    );
    if (run.turn?.streaming) run.turn.lose();
  } catch (error) {
    run.turn?.lose();
    complain(error);
  } finally {
    state.streaming = null;
    refresh();
  }
}

function receive(run, event, replaces) {
  if (event.type === "turn" && !run.turn) {
    if (replaces) {
      state.shown.pop().element.remove();
    }
    run.turn = add(event.turn);
    edit(false);
    $.prompt.value = "";
    grow();
    if (state.open !== event.conversation) {
      state.open = event.conversation;
      history.replaceState(null, "", `#${event.conversation}`);
    }
    refresh();
    refreshList();
    $.thread.scrollTop = $.thread.scrollHeight;
  } else if (event.type === "turn") {
    run.turn.update(event.turn);
    say(run.turn.summary());
    follow();
  } else {
    run.turn.apply(event);
    follow();
  }
}

/** Stay at the end, unless somebody reads further up. */
function follow() {
  const below = $.thread.scrollHeight - $.thread.scrollTop - $.thread.clientHeight;
  if (below < 160) requestAnimationFrame(() => ($.thread.scrollTop = $.thread.scrollHeight));
}

async function stop() {
  const turn = state.streaming?.turn;
  if (turn) await api.stop(turn.told.id).catch(complain);
}

const again = () => ask(last().told.prompt, last().told.id);

function edit(on) {
  state.editing = on;
  $.editing.hidden = !on;
  $.prompt.value = on ? last().told.prompt : "";
  grow();
  if (on) $.prompt.focus();
}

async function vote(turn, choice) {
  try {
    turn.update(await api.vote(turn.told.id, choice));
    say(turn.verdict.textContent);
    $.prompt.focus();
  } catch (error) {
    complain(error);
  }
}

// ---- the rest

function complain(error) {
  if (error.status === 401) {
    $.locked.showModal();
    return;
  }
  say("");
  $.turns.querySelector(".complaint")?.remove();
  const words = make("p", { class: "complaint box", role: "alert" }, error.message);
  $.turns.append(words);
  setTimeout(() => words.scrollIntoView({ block: "nearest" }));
}

async function save(format) {
  const blob = await api.exported(state.open, format);
  const link = make("a", { href: URL.createObjectURL(blob), download: `side-by-side.${format === "json" ? "json" : "md"}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  $.more.open = false;
}

async function remove() {
  if (!confirm("Delete this conversation and the votes in it? This cannot be undone.")) return;
  await api.remove(state.open);
  $.more.open = false;
  location.hash = "";
}

function drawer(shown) {
  const hidden = narrow.matches && !shown;
  document.body.classList.toggle("drawer", narrow.matches && shown);
  $.sidebar.inert = hidden;
  $.shade.hidden = !(narrow.matches && shown);
  $.menu.setAttribute("aria-expanded", String(!hidden));
  if (narrow.matches && shown) $.close.focus();
}

/** The prompt's field is as high as its text, up to a third of the window. */
function grow() {
  $.prompt.style.height = "auto";
  $.prompt.style.height = `${Math.min($.prompt.scrollHeight, innerHeight / 3)}px`;
}

function onKey(event) {
  if (event.key === "Escape") {
    if ($.locked.open) return;
    if (state.streaming) stop();
    else if (document.body.classList.contains("drawer")) {
      drawer(false);
      $.menu.focus();
    } else if ($.more.open) $.more.open = false;
    else if (state.editing) edit(false);
    else return;
    event.preventDefault();
  } else if (event.target === $.prompt && event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $.ask.requestSubmit();
  } else if (event.target === $.prompt && event.key === "ArrowUp" && !$.prompt.value && last() && !state.streaming) {
    event.preventDefault();
    edit(true);
  }
}

function listen() {
  $.ask.addEventListener("submit", (event) => {
    event.preventDefault();
    ask($.prompt.value, state.editing ? last().told.id : null);
  });
  document.addEventListener("keydown", onKey);
  $.stop.addEventListener("click", stop);
  $.cancel.addEventListener("click", () => edit(false));
  $.prompt.addEventListener("input", grow);
  $.tune.addEventListener("click", () => tune($.settings.hidden));
  for (const name of ["system", "blind", ...NUMBERS]) $[name].addEventListener("change", keepSettings);
  $.new.addEventListener("click", () => {
    location.hash = "";
    drawer(false);
    $.prompt.focus();
  });
  $.list.addEventListener("click", () => drawer(false));
  $.menu.addEventListener("click", () => drawer(true));
  for (const element of [$.close, $.shade]) element.addEventListener("click", () => drawer(false));
  narrow.addEventListener("change", () => drawer(false));
  $.markdown.addEventListener("click", () => save("markdown").catch(complain));
  $.json.addEventListener("click", () => save("json").catch(complain));
  $.delete.addEventListener("click", () => remove().catch(complain));
  addEventListener("hashchange", () => open(location.hash.slice(1) || null).catch(complain));
  $.unlock.addEventListener("submit", (event) => {
    event.preventDefault();
    api.keepToken($.token.value);
    $.locked.close();
    start();
  });
}

async function start() {
  try {
    state.about = await api.about();
    const { backends, model, mode, examples } = state.about;
    $.names.textContent = backends.join(" and ");
    $.model.textContent = model;
    document.title = `${backends.join(" and ")}: qbench`;
    $.mode.hidden = mode === "chat";
    for (const field of document.querySelectorAll(".chat")) field.hidden = mode !== "chat";
    $.prompt.placeholder = mode === "chat" ? "Ask both" : "A text for both to continue";
    $.examples.replaceChildren(
      ...examples.map((text) =>
        make("li", {}, make("button", { type: "button", onclick: () => ask(text) }, text)),
      ),
    );
    await open(location.hash.slice(1) || null);
    await refreshList();
  } catch (error) {
    complain(error);
  }
  document.documentElement.classList.add("ready");
}

fillPresets();
recallSettings();
listen();
drawer(false);
start();
