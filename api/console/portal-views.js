/** The customers' page: what runs and what is left, a playground that streams, and code to copy. */
import { Badge, call, dollars, Fault, html, LimitsLeft, number, SESSION, Sure, Table, useAction, useAnswer, Waiting } from './base.js';
import { streamChat } from './client.js';
import { useEffect, useRef, useState } from './vendor/hooks.js';

const REPAINT_MS = 40;

export function Overview() {
  const { data, error } = useAnswer('/v1/usage', 5);
  const Tile = ({ name, value }) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`;
  return html`<section aria-labelledby="all"><h2 id="all">Until now</h2>${data ? html`<dl class="tiles">
      <${Tile} name="Requests" value=${number(data.events)}/><${Tile} name="Tokens in" value=${number(data.input_tokens)}/>
      <${Tile} name="Tokens out" value=${number(data.output_tokens)}/><${Tile} name="Cost" value=${dollars(data.cost_nano_dollars)}/></dl>
      ${data.events === 0 && html`<p class="empty">Nothing was used yet. Try the <a href="#/playground">playground</a>, or see how to <a href="#/integrate">integrate</a>.</p>`}`
    : html`<${Waiting} error=${error}/>`}</section>
    <section aria-labelledby="limits"><h2 id="limits">Limits</h2><${LimitsLeft} path="/v1/limits"/></section>
    <section aria-labelledby="running"><h2 id="running">Live streams</h2><${Streams}/></section>`;
}

function Streams() {
  const { data, error, reload } = useAnswer('/v1/streams', 2);
  const stopping = useAction();
  if (!data) return html`<${Waiting} error=${error}/>`;
  const stop = (id) => stopping.run(async () => { await call('POST', `/v1/streams/${id}/stop`); reload(); });
  return html`<${Fault} error=${stopping.error}/><${Table} caption="Streams that run" empty="No stream runs."
    head=${['Model', 'Key', 'Age', 'Tokens out', 'State', '']}
    rows=${data.map((one) => [one.model, one.key_id ?? '', `${number(one.age_seconds)} s`, number(one.output_tokens), html`<${Badge} state=${one.state}/>`,
    html`<${Sure} label="Stop" question="Stop this stream? What it has used is on the ledger." act=${() => stop(one.id)} disabled=${stopping.busy}/>`])}/>`;
}

/** The session's cookie instead of a key, which this page does not keep. */
function withSession(url, options) {
  const headers = new Headers(options.headers);
  headers.delete('Authorization');
  for (const [name, value] of Object.entries(SESSION)) headers.set(name, value);
  return fetch(url, { ...options, headers });
}

export function Playground() {
  const { data } = useAnswer('/v1/models');
  const [answer, setAnswer] = useState('');
  const [running, setRunning] = useState(null);
  const [error, setError] = useState(null);
  const gone = useRef(null);
  useEffect(() => () => gone.current?.abort(), []);
  const send = async (event) => {
    event.preventDefault();
    const { prompt, model } = Object.fromEntries(new FormData(event.target));
    const stop = gone.current = new AbortController();
    let text = '';
    const paint = () => setAnswer(text);
    setRunning(stop);
    setError(null);
    paint();
    const timer = setInterval(paint, REPAINT_MS);
    try {
      for await (const token of streamChat({ key: '', prompt, model, signal: stop.signal, fetch: withSession })) text += token;
    } catch (fault) {
      if (!stop.signal.aborted) setError(fault);
    } finally {
      clearInterval(timer);
      paint();
      setRunning(null);
    }
  };
  const models = (data?.data ?? []).filter(({ id }) => !id.includes('embedding'));
  return html`<section aria-label="Try it"><form onSubmit=${send}>
      <label for="model">Model</label><select id="model" name="model"><option value="">default model</option>${models.map(({ id }) => html`<option value=${id}>${id}</option>`)}</select>
      <label for="prompt">Prompt</label><textarea id="prompt" name="prompt" rows="3" required></textarea>
      <div class="actions"><button class="primary" disabled=${running}>Send</button>
        <button type="button" disabled=${!running} onClick=${() => running.abort()}>Stop</button>
        <span class="hint" role="status">${running ? 'Streaming…' : ''}</span></div></form>
    <${Fault} error=${error}/>
    <h2 id="answer">Answer</h2><pre id="output" role="log" aria-labelledby="answer" aria-busy=${running ? 'true' : 'false'} tabindex="0" data-empty="The answer appears here. It is used and billed as any other.">${answer}</pre></section>`;
}

/** Snippets, with this gateway's address. docs/integrate.md has the same; a test runs them. */
export const samples = (base) => ({
  curl: `curl -N ${base}/v1/chat/completions \\
  -H "Authorization: Bearer $SLUICEGATE_KEY" -H 'Content-Type: application/json' \\
  -d '{"model": "MODEL", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'`,
  'Python, OpenAI': `import os

from openai import OpenAI

client = OpenAI(base_url="${base}/v1", api_key=os.environ["SLUICEGATE_KEY"])
messages = [{"role": "user", "content": "Hello"}]
for chunk in client.chat.completions.create(model="MODEL", messages=messages, stream=True):
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)`,
  'Python, Anthropic': `import os

from anthropic import Anthropic

client = Anthropic(base_url="${base}", api_key=os.environ["SLUICEGATE_KEY"])
messages = [{"role": "user", "content": "Hello"}]
with client.messages.stream(model="MODEL", max_tokens=1024, messages=messages) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)`,
  JavaScript: `import OpenAI from 'openai';

const client = new OpenAI({ baseURL: '${base}/v1', apiKey: process.env.SLUICEGATE_KEY });
const messages = [{ role: 'user', content: 'Hello' }];
for await (const chunk of await client.chat.completions.create({ model: 'MODEL', messages, stream: true })) {
  process.stdout.write(chunk.choices[0]?.delta?.content ?? '');
}`,
});

export function Integrate() {
  const [said, say] = useState('');
  const copy = async (name, text) => {
    try {
      await navigator.clipboard.writeText(text);
      say(`${name}: copied.`);
    } catch {
      say('Copying is not allowed here; select the text.');
    }
  };
  return html`<p class="hint" role="status">${said}</p>${Object.entries(samples(location.origin)).map(([name, text]) => html`
    <section aria-label=${name}><div class="title-row"><h2>${name}</h2><button type="button" class="small" onClick=${() => copy(name, text)}>Copy</button></div>
      <pre tabindex="0">${text}</pre></section>`)}`;
}
