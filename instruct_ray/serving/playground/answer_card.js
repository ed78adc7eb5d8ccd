// One answer on the page: its text as it is generated, its counts and times, and its errors. All of it is plain text.

import { describeVersion } from "./endpoint_client.js";

const template = document.getElementById("answer-template");

export class AnswerCard {
  /** `model` is an entry of `EndpointClient.getModels`; `onBetter(card)` is called when the user chooses the answer. */
  constructor(model, number, onBetter) {
    this.model = model;
    this.element = template.content.firstElementChild.cloneNode(true);
    const find = (selector) => this.element.querySelector(selector);
    this.parts = {
      version: find(".version"), text: find(".text"), error: find(".error"), facts: find(".facts"),
      better: find(".better"),
    };
    find(".number").textContent = number;
    find(".name").textContent = model.model;
    this.parts.version.textContent = describeVersion(model.version);
    this.parts.better.setAttribute("aria-label", `Better here: answer ${number}, ${model.model}`);
    this.parts.better.addEventListener("click", () => onBetter(this));
    this.answer = { model: model.model, output: "" };
    this.startedAt = performance.now();
    this.parts.text.setAttribute("aria-busy", "true");
  }

  get canBeChosen() {
    return !this.parts.better.disabled;
  }

  /** The response has begun: which version answers. */
  start(headers) {
    const version = headers.get("x-model-version");
    Object.assign(this.answer, {
      version, contract_digest: headers.get("x-contract-digest"), data_digest: headers.get("x-data-digest") || null,
    });
    if (version) this.parts.version.textContent = describeVersion(version.split("/").pop());
  }

  /** A chunk of the stream. */
  add(chunk) {
    const [choice] = chunk.choices, text = choice?.delta.content;
    if (text) {
      this.answer.first_token_seconds ??= this.#elapsed();
      this.answer.output += text;
      this.parts.text.textContent = this.answer.output;
    }
    if (choice?.finish_reason) this.answer.finish_reason = choice.finish_reason;
    if (chunk.usage) {
      this.answer.prompt_tokens = chunk.usage.prompt_tokens;
      this.answer.completion_tokens = chunk.usage.completion_tokens;
    }
  }

  /** The answer ends: complete, stopped by the user (`note`), or with an error. */
  end({ error = "", note = "" } = {}) {
    this.answer.seconds = this.#elapsed();
    this.parts.text.setAttribute("aria-busy", "false");
    this.parts.error.hidden = !error;
    this.parts.error.textContent = error;
    this.#showFacts(note);
    this.parts.better.disabled = Boolean(error);
  }

  markSaved() {
    this.element.classList.add("saved");
    this.parts.better.disabled = true;
    this.parts.better.textContent = "Saved";
  }

  #elapsed() {
    return Math.round(performance.now() - this.startedAt) / 1000;
  }

  #showFacts(note) {
    const answer = this.answer, facts = [];
    if (answer.prompt_tokens !== undefined) {
      facts.push(count(answer.prompt_tokens, "prompt token"), count(answer.completion_tokens, "completion token"));
    }
    if (answer.first_token_seconds !== undefined) facts.push(`first token ${answer.first_token_seconds.toFixed(2)} s`);
    facts.push(`total ${answer.seconds.toFixed(2)} s`);
    if (answer.finish_reason === "length") facts.push("cut at the maximum of tokens");
    if (note) facts.push(note);
    this.parts.facts.textContent = facts.join(" · ");
  }
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}
