/** A prompt with its two answers, as elements. Texts of models and people go in as text, never as HTML. */

import { characters, difference, parts } from "./difference.js";

const SIDES = ["a", "b"];
const MISSING = "–";

/** An element with attributes and children; a string becomes text. */
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function bytes(value) {
  if (value === null) return MISSING;
  return value < 2 ** 30 ? `${(value / 2 ** 20).toFixed(2)} MiB` : `${(value / 2 ** 30).toFixed(2)} GiB`;
}

const number = (value) => value.toLocaleString("en");

function speed(value) {
  return value === null ? MISSING : `${value < 100 ? value.toFixed(1) : number(Math.round(value))} tokens/s`;
}

function delay(seconds) {
  if (seconds === null) return MISSING;
  return seconds < 1 ? `${(1000 * seconds).toFixed(0)} ms` : `${seconds.toFixed(2)} s`;
}

/** What is said below an answer that has not simply ended. */
function trouble(answer, name) {
  if (answer.state === "failed") {
    return answer.error === undefined
      ? `${name} ended with an error. Ask again, or switch Blind off to see which.`
      : `${name} ended with an error: ${answer.error ?? "the server does not say why"}`;
  }
  if (answer.state === "stopped") return "Stopped.";
  if (answer.state === "interrupted") return "The server ended here; this is what had arrived.";
  if (answer.state === "lost") return "The connection to the server broke off here.";
  return "";
}

export class Turn {
  /** `actions`: vote(turn, choice), again(), edit(). */
  constructor(told, number, actions) {
    this.actions = actions;
    this.number = number;
    this.panes = Object.fromEntries(SIDES.map((side) => [side, this.pane()]));
    this.prompt = make("div", { class: "asked" });
    this.how = make("p", { class: "faint small how" });
    this.buttons = make("div", { class: "buttons" });
    this.where = make("p", { class: "where small" });
    this.verdict = make("div", { class: "verdict" });
    this.element = make(
      "article",
      { class: "turn", "aria-label": `Prompt ${number}` },
      make("div", { class: "prompt" }, this.prompt, this.how, this.buttons),
      make("div", { class: "panes" }, ...SIDES.map((side) => this.panes[side].element)),
      this.where,
      this.verdict,
    );
    this.update(told);
  }

  pane() {
    const name = make("h3");
    const badge = make("span", { class: "badge" });
    const text = make("div", { class: "text" });
    const said = make("p", { class: "said small" });
    const figures = make("ul", { class: "figures small" });
    const element = make("section", { class: "pane" }, make("header", {}, name, badge), text, said, figures);
    return { element, name, badge, text, said, figures };
  }

  get streaming() {
    return SIDES.some((side) => this.told.answers[side].state === "streaming");
  }

  /** The whole turn, as the server tells it. */
  update(told) {
    this.told = told;
    this.prompt.textContent = told.prompt;
    const { system, temperature, top_p, max_tokens, seed } = told.settings;
    const words = [`temperature ${temperature}`, `top p ${top_p}`, `at most ${number(max_tokens)} tokens`];
    if (temperature > 0) words.push(`seed ${seed}`);
    if (system && told.mode === "chat") words.push(`system prompt “${system.length > 60 ? `${system.slice(0, 60)}…` : system}”`);
    if (told.blind) words.push("blind");
    this.how.textContent = words.join(" · ");
    this.draw();
  }

  /** One event of the stream. */
  apply(event) {
    const answer = this.told.answers[event.side];
    const { type, side, text, ...news } = event;
    if (text) answer.text += text;
    Object.assign(answer, news);
    this.later ??= requestAnimationFrame(() => {
      this.later = undefined;
      this.draw();
    });
  }

  /** What still streams will not go on. */
  lose() {
    for (const side of SIDES) {
      const answer = this.told.answers[side];
      if (answer.state === "streaming") answer.state = "lost";
    }
    this.draw();
  }

  name(side) {
    return this.told.answers[side].backend ?? `Answer ${side.toUpperCase()}`;
  }

  draw() {
    const place = difference(this.told.answers.a, this.told.answers.b);
    for (const side of SIDES) this.drawPane(side, place);
    this.drawWhere(place);
    this.drawVerdict();
  }

  drawPane(side, place) {
    const pane = this.panes[side];
    const answer = this.told.answers[side];
    const name = this.name(side);
    pane.element.dataset.side = side;
    pane.element.setAttribute("aria-label", name);
    pane.element.setAttribute("aria-busy", String(answer.state === "streaming"));
    pane.name.textContent = name;
    pane.badge.textContent = this.told.choice === side ? "preferred" : "";
    pane.element.classList.toggle("preferred", this.told.choice === side);
    pane.element.classList.toggle("streaming", answer.state === "streaming");
    if (place === null) pane.text.replaceChildren(answer.text);
    else {
      const [before, word, after] = parts(answer.text, place);
      pane.text.replaceChildren(
        before,
        make("mark", word ? {} : { class: "end" }, word),
        after,
      );
    }
    if (!answer.text && answer.state === "done") {
      pane.text.replaceChildren(make("span", { class: "faint" }, "An empty answer: the model ended at once."));
    }
    pane.said.textContent = trouble(answer, name);
    pane.said.classList.toggle("alarm", ["failed", "lost"].includes(answer.state));
    this.drawFigures(pane.figures, answer);
  }

  drawFigures(list, answer) {
    if (this.told.hidden) {
      list.replaceChildren(make("li", {}, "figures after your vote"));
      return;
    }
    const shown = [
      ["speed", speed(answer.decode_tokens_per_s ?? null), "while both answer; without the first token"],
      ["tokens", `${number(answer.tokens ?? 0)} tokens`, "of the answer"],
      ["memory", `${bytes(answer.weight_bytes ?? null)} of weights`, "in memory, all of the model"],
      ["delay", `first after ${delay(answer.ttft_s ?? null)}`, "from the request to the first token"],
    ];
    list.replaceChildren(...shown.map(([kind, text, title]) => make("li", { class: kind, title }, text)));
  }

  drawWhere(place) {
    const { a, b } = this.told.answers;
    if (place !== null) {
      const count = characters(a.text.slice(0, place));
      this.where.textContent = count
        ? `The first ${number(count)} character${count === 1 ? " is" : "s are"} the same; then the answers differ.`
        : "The answers differ from the first character.";
    } else if (this.streaming) this.where.textContent = a.text && b.text ? "The same so far." : "";
    else this.where.textContent = a.text === b.text && a.text ? "Both answers are the same, character by character." : "";
  }

  drawVerdict() {
    const { told } = this;
    const whole = SIDES.every((side) => ["done", "stopped"].includes(told.answers[side].state));
    const state = `${told.choice} ${told.hidden && whole}`;
    if (state === this.verdictState) return;
    this.verdictState = state;
    if (told.choice) {
      const words = told.choice === "tie" ? "no difference" : `${this.name(told.choice)} preferred`;
      this.verdict.replaceChildren(
        make("p", {}, "Your vote: ", make("b", {}, words), `. A was ${this.name("a")}, B was ${this.name("b")}.`),
      );
    } else if (told.hidden && whole) {
      const button = (choice, words) =>
        make("button", { type: "button", onclick: () => this.actions.vote(this, choice) }, words);
      this.verdict.replaceChildren(
        make(
          "div",
          { role: "group", "aria-label": "Which answer is better?", class: "votes" },
          make("span", { "aria-hidden": "true" }, "Which is better?"),
          button("a", "A"),
          button("tie", "No difference"),
          button("b", "B"),
        ),
      );
    } else this.verdict.replaceChildren();
  }

  /** Only the last prompt can be edited or asked again, and not while it is answered. */
  offer(last) {
    const wanted = last && !this.streaming;
    if (wanted === this.offered) return;
    this.offered = wanted;
    this.buttons.replaceChildren(
      ...(wanted
        ? [
            make("button", { type: "button", class: "plain", onclick: () => this.actions.edit() }, "Edit"),
            make("button", { type: "button", class: "plain", onclick: () => this.actions.again() }, "Ask again"),
          ]
        : []),
    );
  }

  /** For those who hear the page: how it ended. */
  summary() {
    const ends = SIDES.map((side) => {
      const answer = this.told.answers[side];
      const count = answer.tokens === undefined ? "" : `, ${answer.tokens} tokens`;
      return `${this.name(side)}: ${answer.state === "done" ? `answered${count}` : trouble(answer, this.name(side))}`;
    });
    return `${ends.join(". ")}. ${this.where.textContent}`;
  }
}
