// The requests of the page. They go to the endpoint that served it, below the path of the page.

export class EndpointError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export class EndpointClient {
  /** `readKey()` returns the API key, empty for none. */
  constructor(readKey) {
    this.readKey = readKey;
  }

  /** The served versions, each once: {model, names, version, layout}. */
  async getModels() {
    const body = await (await this.#send("v1/models")).json();
    return groupByVersion(body.data);
  }

  /** {saves_triples, max_new_tokens}. */
  async getSettings() {
    return (await this.#send("playground/settings")).json();
  }

  async saveTriple(triple) {
    return (await this.#send("playground/triples", { body: triple })).json();
  }

  /** Ask a question; `onStart(headers)` is called once, and `onChunk(chunk)` for each event of the stream.
   *  Throws an EndpointError unless the stream is complete. */
  async streamChat(question, signal, onStart, onChunk) {
    const response = await this.#send("v1/chat/completions", { body: question, signal });
    onStart(response.headers);
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new EndpointError(chunk.error.message);
      onChunk(chunk);
    }
    throw new EndpointError("The stream ended before the answer was complete.");
  }

  async #send(path, { body, signal } = {}) {
    const headers = {}, key = this.readKey();
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body) headers["Content-Type"] = "application/json";
    let response;
    try {
      const method = body ? "POST" : "GET";
      response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new EndpointError(`The endpoint does not respond (${error.message}).`);
    }
    if (response.ok) return response;
    throw new EndpointError(`HTTP ${response.status}: ${await readMessage(response)}`, response.status);
  }
}

/** The user message for an instruction and its input, as in training: `layout` is that of the model's contract. */
export function renderMessage(layout, instruction, input) {
  if (!input) return instruction;
  const values = { "{instruction}": instruction, "{input}": input, "{{": "{", "}}": "}" };
  return layout.replace(/\{instruction\}|\{input\}|\{\{|\}\}/g, (part) => values[part]);
}

/** A version in words: its number, or `base`. */
export function describeVersion(version) {
  return version === "base" ? "base model" : `version ${version}`;
}

function groupByVersion(entries) {
  const groups = new Map();
  for (const { id, version, layout } of entries) {
    // NAME, NAME@ALIAS and NAME/VERSION.
    const key = `${id.split(/[@/]/)[0]}/${version}`;
    if (!groups.has(key)) groups.set(key, { names: [], version, layout });
    groups.get(key).names.push(id);
  }
  // A name with an alias says more than the others.
  const chooseName = (names) => names.find((name) => name.includes("@")) ?? names[0];
  return [...groups.values()].map((group) => ({ ...group, model: chooseName(group.names) }));
}

async function readMessage(response) {
  const retry = response.headers.get("retry-after"), text = await response.text();
  let message = text;
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // Not from the endpoint, but from a proxy before it.
  }
  return retry && !message.includes(`${retry} s`) ? `${message} (in ${retry} s)` : message;
}

async function* readEvents(body) {
  let buffer = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const events = buffer.split("\n\n");
    buffer = events.pop();
    for (const event of events) if (event.startsWith("data: ")) yield event.slice(6);
  }
}
