// openai-node against a gate: what an application gets, as JSON. The same scenarios as probe_openai.py.
import OpenAI from "openai";
import { VERSION } from "openai/version";

const [url, key] = process.argv.slice(2);
const sdk = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0, timeout: 30_000 });
const messages = [{ role: "user", content: "hi" }];
const parameters = {
  type: "object",
  properties: { words: { type: "string" } },
  required: ["words"],
  additionalProperties: false,
};
const tool = { name: "weather", parameters };
const schema = { type: "object", properties: { name: { type: "string" } }, required: ["name"] };
const quick = "scripted?pace_ms=0&";
const text = (chunk) => chunk.choices.map((choice) => choice.delta.content ?? "").join("");

const scenarios = {
  async chat_whole() {
    const answer = await sdk.chat.completions.create({ model: quick + "tokens=5", messages });
    const [choice] = answer.choices;
    return [choice.message.content, choice.finish_reason, answer.usage.completion_tokens];
  },
  async chat_stream() {
    const chunks = [];
    const stream = await sdk.chat.completions.create({
      model: quick + "tokens=5",
      messages,
      stream: true,
      stream_options: { include_usage: true },
    });
    for await (const chunk of stream) chunks.push(chunk);
    const last = chunks.at(-1);
    return [chunks.map(text).join(""), last.usage.completion_tokens, last.choices.length];
  },
  async chat_tools() {
    const stream = sdk.chat.completions.stream({
      model: quick + "tokens=0&calls=2",
      messages,
      tools: [{ type: "function", function: tool }],
    });
    const { message, finish_reason } = (await stream.finalChatCompletion()).choices[0];
    const calls = message.tool_calls.map((call) => call.function);
    return [calls.map((call) => [call.name, JSON.parse(call.arguments)]), finish_reason];
  },
  async chat_structured() {
    const answer = await sdk.chat.completions.create({
      model: quick + 'say={"name": "Ada"}',
      messages,
      response_format: { type: "json_schema", json_schema: { name: "ada", schema, strict: true } },
    });
    return JSON.parse(answer.choices[0].message.content);
  },
  async chat_error() {
    let words = 0;
    try {
      const stream = await sdk.chat.completions.create({
        model: quick + "tokens=20&error_at=5",
        messages,
        stream: true,
      });
      for await (const chunk of stream) words += text(chunk) ? 1 : 0;
    } catch (error) {
      return [words, error.code];
    }
    return "not raised";
  },
  async chat_silences() {
    let said = "";
    const model = "scripted?tokens=4&pace_ms=120&silence_at=2&silence_ms=400";
    for await (const chunk of await sdk.chat.completions.create({ model, messages, stream: true }))
      said += text(chunk);
    return said;
  },
  async chat_busy() {
    const model = "scripted?tokens=20&pace_ms=30";
    const held = await sdk.chat.completions.create({ model, messages, stream: true });
    let again;
    let count = 0;
    for await (const _ of held) {
      count += 1;
      again ??= sdk.chat.completions.create({ model: quick + "tokens=2", messages }, { maxRetries: 5 });
    }
    return [count > 0, count > 1, (await again).choices[0].message.content];
  },
  async no_such_model() {
    try {
      await sdk.chat.completions.create({ model: "none", messages });
    } catch (error) {
      return [error.status, error.code];
    }
    return "not raised";
  },
  async responses_whole() {
    const answer = await sdk.responses.create({ model: quick + "tokens=5", input: "hi" });
    return [answer.output_text, answer.status, answer.usage.output_tokens];
  },
  async responses_stream() {
    const events = [];
    const stream = await sdk.responses.create({ model: quick + "tokens=3", input: "hi", stream: true });
    for await (const event of stream) events.push(event);
    const numbers = events.map((event) => event.sequence_number);
    const said = events.at(-1).response.output.flatMap((item) => item.content).map((part) => part.text);
    const rising = numbers.every((number, place) => place === 0 || number > numbers[place - 1]);
    return [events.map((event) => event.type), rising, said.join("")];
  },
  async responses_tools() {
    const answer = await sdk.responses.create({
      model: quick + "tokens=0&calls=2",
      input: "hi",
      tools: [{ type: "function", strict: true, ...tool }],
    });
    return answer.output.map((item) => [item.name, JSON.parse(item.arguments)]);
  },
  async responses_error() {
    try {
      const model = quick + "tokens=20&error_at=5";
      for await (const _ of await sdk.responses.create({ model, input: "hi", stream: true }));
    } catch (error) {
      return error.code;
    }
    return "not raised";
  },
  async chat_abort() {
    let words = 0;
    const model = "scripted?tokens=1000&pace_ms=5&label=abort";
    const stream = await sdk.chat.completions.create({ model, messages, stream: true });
    for await (const chunk of stream) {
      words += text(chunk) ? 1 : 0;
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
  } catch (error) {
    found[name] = String(error);
  }
}
console.log(JSON.stringify(found));
