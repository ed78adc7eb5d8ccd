// The playground: asks several versions the same question and saves the better answer as a triple.

import { AnswerCard } from "./answer_card.js";
import { describeVersion, EndpointClient, EndpointError, renderMessage } from "./endpoint_client.js";

const MAX_ANSWERS = 4;
const KEY_NAME = "instruct_ray.api_key";
const find = (id) => document.getElementById(id);
const client = new EndpointClient(() => find("key").value.trim());

let models = [], settings = { saves_triples: false };
// Of the question that was sent last: its texts, its cards, and what stops them.
let asked = null, cards = [], stopper = null, chosen = null;

async function connect() {
  showText("endpoint-error", "");
  try {
    [models, settings] = await Promise.all([client.getModels(), client.getSettings()]);
  } catch (error) {
    models = [];
    showText("endpoint-error", error.message);
    if (error.status === 401) {
      find("key-details").open = true;
      find("key").focus();
    }
  }
  find("max-tokens").placeholder = settings.max_new_tokens ?? "";
  showModels();
}

function showModels() {
  const labels = models.map(({ model, names, version }, index) => {
    const box = document.createElement("input");
    Object.assign(box, { type: "checkbox", value: index, checked: index < MAX_ANSWERS });
    const others = names.filter((name) => name !== model && name.includes("@"));
    const label = document.createElement("label");
    label.append(box, [model, ...others].join(", ") + ` · ${describeVersion(version)}`);
    return label;
  });
  find("model-list").replaceChildren(...labels);
  limitModels();
}

/** No more than MAX_ANSWERS can be checked. */
function limitModels() {
  const boxes = [...find("model-list").querySelectorAll("input")];
  const isFull = boxes.filter((box) => box.checked).length >= MAX_ANSWERS;
  for (const box of boxes) box.disabled = isFull && !box.checked;
  find("model-limit").hidden = boxes.length <= MAX_ANSWERS;
  setRunning(stopper !== null);
}

function setRunning(isRunning) {
  find("stop").disabled = !isRunning;
  find("send").disabled = isRunning || !find("model-list").querySelector(":checked");
}

async function ask() {
  asked = { instruction: find("instruction").value, input: find("input").value, sampling: readSampling() };
  stopper = new AbortController();
  const checked = [...find("model-list").querySelectorAll(":checked")].map((box) => models[box.value]);
  cards = checked.map((model, index) => new AnswerCard(model, index + 1, openDialog));
  find("answers").replaceChildren(...cards.map((card) => card.element));
  find("no-answers").hidden = true;
  find("notice").textContent = "";
  setRunning(true);
  find("answers-title").focus();
  await Promise.all(cards.map(answer));
  stopper = null;
  setRunning(false);
}

/** The sampling fields that are filled in; the endpoint has defaults for the others. */
function readSampling() {
  const fields = [["temperature", "temperature"], ["max_tokens", "max-tokens"], ["seed", "seed"]];
  const filled = fields.filter(([, id]) => find(id).value);
  return Object.fromEntries(filled.map(([name, id]) => [name, Number(find(id).value)]));
}

async function answer(card) {
  const { instruction, input, sampling } = asked;
  try {
    const messages = [{ role: "user", content: renderMessage(card.model.layout, instruction, input) }];
    const stream = { stream: true, stream_options: { include_usage: true } };
    const question = { model: card.model.model, messages, ...sampling, ...stream };
    await client.streamChat(question, stopper.signal, (headers) => card.start(headers), (chunk) => card.add(chunk));
    card.end();
  } catch (error) {
    if (error.name === "AbortError") card.end({ note: "stopped" });
    else if (error instanceof EndpointError) card.end({ error: error.message });
    else card.end({ error: `The answer could not be read (${error.message}).` });
  }
}

function openDialog(card) {
  chosen = card;
  find("save-name").textContent = card.model.model;
  find("output").value = card.answer.output;
  find("save-help").textContent = (settings.saves_triples
    ? "Saved at the endpoint with your instruction and input, for the next tuning."
    : "This endpoint has no serving.feedback_file, so the triple is downloaded.")
    + " Correct the output if it is not perfect.";
  find("save").textContent = settings.saves_triples ? "Save triple" : "Download";
  showText("save-error", "");
  find("save-dialog").showModal();
  find("output").focus();
}

async function save() {
  const answers = cards.filter((card) => (card.answer.output || card === chosen) && card.parts.error.hidden);
  const shown = { chosen: answers.indexOf(chosen), answers: answers.map((card) => card.answer) };
  const triple = { ...asked, output: find("output").value, ...shown };
  showText("save-error", triple.output.trim() ? "" : "The output is empty.");
  if (!triple.output.trim() || find("save").disabled) return;
  find("save").disabled = true;
  try {
    if (settings.saves_triples) await client.saveTriple(triple);
    else download(triple);
    chosen.markSaved();
    find("save-dialog").close();
    find("notice").textContent = settings.saves_triples ? "The triple is saved." : "The triple is downloaded.";
  } catch (error) {
    showText("save-error", error.message);
  }
  find("save").disabled = false;
}

/** The row that the endpoint would have saved, but for its id and the name of a key. */
function download({ instruction, input, output, ...shown }) {
  const isEdited = output !== shown.answers[shown.chosen].output;
  const provenance = { saved_at: new Date().toISOString(), key: null, is_edited: isEdited, ...shown };
  const row = { instruction, input, output, provenance };
  const url = URL.createObjectURL(new Blob([JSON.stringify(row) + "\n"], { type: "application/jsonl" }));
  const name = `triple-${provenance.saved_at.replaceAll(":", "-")}.jsonl`;
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  URL.revokeObjectURL(url);
}

function showText(id, text) {
  find(id).textContent = text;
  find(id).hidden = !text;
}

function handleKey(event) {
  if (find("save-dialog").open) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
    return;
  }
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!find("send").disabled) find("question").requestSubmit();
  } else if (event.key === "Escape") {
    stopper?.abort();
  } else if (!event.target.matches("textarea, input") && !event.ctrlKey && !event.metaKey && !event.altKey) {
    if (event.key === "/") {
      event.preventDefault();
      find("instruction").focus();
    } else if (cards[event.key - 1]?.canBeChosen) {
      event.preventDefault();
      openDialog(cards[event.key - 1]);
    }
  }
}

find("key").value = sessionStorage.getItem(KEY_NAME) ?? "";
find("key").addEventListener("change", () => {
  sessionStorage.setItem(KEY_NAME, find("key").value.trim());
  connect();
});
find("key-form").addEventListener("submit", (event) => event.preventDefault());
find("model-list").addEventListener("change", limitModels);
find("question").addEventListener("submit", (event) => {
  event.preventDefault();
  if (stopper === null) ask();
});
// A field that is wrong must be seen.
find("question").addEventListener("invalid", (event) => {
  const details = event.target.closest("details");
  if (details) details.open = true;
}, true);
find("stop").addEventListener("click", () => stopper?.abort());
find("save").addEventListener("click", save);
find("cancel").addEventListener("click", () => find("save-dialog").close());
document.addEventListener("keydown", handleKey);
connect();
