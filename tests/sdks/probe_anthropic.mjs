// anthropic-node against a gate: what an application gets, as JSON. The same scenarios as probe_anthropic.py.
import Anthropic from "@anthropic-ai/sdk";
import { VERSION } from "@anthropic-ai/sdk/version";

const [url, key] = process.argv.slice(2);
const options = { baseURL: url, maxRetries: 0, timeout: 30_000 };
const sdk = new Anthropic({ ...options, apiKey: key });
const asked = { max_tokens: 2000, messages: [{ role: "user", content: "hi" }] };
const tool = {
  name: "weather",
  input_schema: { type: "object", properties: { words: { type: "string" } }, required: ["words"] },
};
const schema = {
  type: "object",
  properties: { name: { type: "string" } },
  required: ["name"],
  additionalProperties: false,
};
const quick = "scripted?pace_ms=0&";
const isText = (event) => event.type === "content_block_delta" && event.delta.type === "text_delta";

const scenarios = {
  async whole() {
    const message = await sdk.messages.create({ model: quick + "tokens=5", ...asked });
    return [message.content[0].text, message.stop_reason, message.usage.output_tokens];
  },
  async stream() {
    const kinds = [];
    const events = sdk.messages.stream({ model: quick + "tokens=3", ...asked });
    for await (const event of events) kinds.push(event.type);
    const message = await events.finalMessage();
    return [kinds, message.content[0].text, message.stop_reason, message.usage.output_tokens];
  },
  async tools() {
    const events = sdk.messages.stream({ model: quick + "tokens=0&calls=2", tools: [tool], ...asked });
    const message = await events.finalMessage();
    return [message.content.map((block) => [block.name, block.input]), message.stop_reason];
  },
  async structured() {
    const message = await sdk.messages.create({
      model: quick + 'say={"name": "Ada"}',
      output_config: { format: { type: "json_schema", schema } },
      ...asked,
    });
    return JSON.parse(message.content[0].text);
  },
  async error() {
    let words = 0;
    try {
      const model = quick + "tokens=20&error_at=5";
      for await (const event of await sdk.messages.create({ model, stream: true, ...asked }))
        words += isText(event) ? 1 : 0;
    } catch (raised) {
      return [words, raised.error.error.type, raised.error.error.code];
    }
    return "not raised";
  },
  async silences() {
    const model = "scripted?tokens=4&pace_ms=120&silence_at=2&silence_ms=400";
    return await sdk.messages.stream({ model, ...asked }).finalText();
  },
  async busy() {
    const model = "scripted?tokens=20&pace_ms=30";
    let again;
    let count = 0;
    for await (const _ of await sdk.messages.create({ model, stream: true, ...asked })) {
      count += 1;
      again ??= sdk.messages.create({ model: quick + "tokens=2", ...asked }, { maxRetries: 5 });
    }
    return [count > 0, count > 1, (await again).content[0].text];
  },
  async no_such_model() {
    try {
      await sdk.messages.create({ model: "none", ...asked });
    } catch (raised) {
      return [raised.status, raised.error.error.type];
    }
    return "not raised";
  },
  async wrong_key() {
    try {
      await new Anthropic({ ...options, apiKey: "sk-wrong" }).messages.create({ model: quick, ...asked });
    } catch (raised) {
      return [raised.error.error.type, raised.requestID === raised.error.request_id];
    }
    return "not raised";
  },
  async abort() {
    let words = 0;
    const model = "scripted?tokens=1000&pace_ms=5&label=abort";
    const stream = await sdk.messages.create({ model, stream: true, ...asked });
    for await (const event of stream) {
      words += isText(event) ? 1 : 0;
      if (words === 3) break;
    }
    stream.controller.abort();
    return words;
  },
};

const found = { major: Number(VERSION.split(".")[0]) };
for (const [name, scenario] of Object.entries(scenarios)) {
  try {
    found[name] = await scenario();
  } catch (raised) {
    found[name] = String(raised);
  }
}
console.log(JSON.stringify(found));
