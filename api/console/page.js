/** The page at `/`: it sends one prompt at a time and shows the answer as text, never as HTML. */
import { responseError, streamChat, StreamError } from './client.js';

const ids = ['key', 'key-hint', 'key-state', 'model', 'prompt', 'send', 'stop', 'error', 'output', 'state',
  'metrics', 'usage', 'curl', 'copy', 'copied'];
const $ = Object.fromEntries(ids.map((id) => [id, document.getElementById(id)]));

const REPAINT_MS = 40; // many tokens may arrive in one frame; the page is painted once for them
const TYPING_MS = 400; // a key that is being typed is not tried at every letter
const SETTLE_MS = 1500; // the gateway may book a stream, above all a stopped one, a little after its end

let stream = null; // the AbortController of the running stream
let account = new AbortController(); // of the requests made for the key that is in the field
let typing = null; // the timer that waits for the end of the typing
let settling = null; // the timer that waits for the gateway's books
let opened = null; // the key that the model list and the totals on the page belong to

/** What happened and what to do next, by an error's code, then by its HTTP status. */
const ADVICE = {
  network_error: ['The server could not be reached.', 'Check that it is running and that you are online, then try again.'],
  not_a_stream: ['Something other than the gateway answered.', 'Check the address and any proxy in between.'],
  stream_truncated: ['The connection broke before the answer was complete.', 'What arrived is kept. Send again.'],
  400: ['The server did not accept this request.', 'Change the prompt or the model, then send again.'],
  401: ['The server does not know this key.', 'Paste the whole key again, or ask for a new one.'],
  403: ['This key may not do that.', 'Choose another model or use another key.'],
  404: ['The server does not have what was asked for.', 'Choose a model from the list, then try again.'],
  413: ['The prompt is too long.', 'Shorten it, then send again.'],
  429: ['This tenant has reached a limit.', 'Wait {wait}, then try again.'],
  503: ['The service cannot take the request now.', 'Wait {wait}, then try again.'],
  500: ['The server failed.', 'Try again. If it fails again, report the request id.'],
  200: ['The answer broke off.', 'What arrived is kept. Send again; if it fails again, report the request id.'],
};

const element = (tag, ...parts) => {
  const made = document.createElement(tag);
  made.append(...parts);
  return made;
};

const count = (n, thing) => `${n} ${thing}${n === 1 ? '' : 's'}`;

function showError(error) {
  const { code, status, message, requestId, retryAfterSeconds: seconds } = error;
  if (!(error instanceof StreamError)) console.error(error);
  const [what, next] = ADVICE[code] ?? ADVICE[status] ?? (status >= 400 && status < 500 ? ADVICE[400] : ADVICE[500]);
  const wait = seconds === null ? 'a little' : seconds < 120 ? count(seconds, 'second')
    : seconds < 7200 ? count(Math.ceil(seconds / 60), 'minute') : count(Math.ceil(seconds / 3600), 'hour');
  const parts = [element('strong', what)];
  if (!(code in ADVICE)) parts.push(element('span', message));
  parts.push(element('span', next.replace('{wait}', wait)));
  if (requestId) parts.push(element('small', `Request id: ${requestId}`));
  $.error.replaceChildren(...parts);
}

function ask(what, field) {
  $.error.replaceChildren(element('strong', what));
  field?.focus();
}

/** The key as pasted, without the space and the `Bearer` that often come along. */
const readKey = () => $.key.value.trim().replace(/^bearer\s+/i, '');

const keyProblem = (key) => (key === '' && 'Paste an API key first. ./scripts/serve printed one.')
  || (/[^\x21-\x7e]/.test(key) && 'This is not a whole API key: it has spaces or special characters in it. Paste it again.');

/** Storage may be switched off in the browser; the page then forgets the key on a reload. */
function keep(value) {
  try {
    if (value === undefined) return sessionStorage.getItem('sluicegate-key') ?? '';
    sessionStorage.setItem('sluicegate-key', value);
  } catch { /* see above */ }
  return '';
}

async function get(path, { signal } = account) {
  const headers = { Authorization: `Bearer ${readKey()}` };
  const response = await fetch(path, { headers, signal }).catch((cause) => {
    signal.throwIfAborted();
    throw new StreamError('', { code: 'network_error', cause });
  });
  if (!response.ok) throw await responseError(response);
  return response.json();
}

/** Fills the model list and the totals for the key in the field, or empties them. */
async function openAccount() {
  const key = readKey();
  if (key === opened) return;
  opened = key;
  keep(key);
  account.abort();
  const { signal } = account = new AbortController();
  const chosen = $.model.value;
  $.model.length = 1;
  $.error.replaceChildren();
  $['key-state'].textContent = '';
  $['key-hint'].hidden = key !== '';
  $.key.removeAttribute('aria-invalid');
  $.output.dataset.empty = `${key ? 'Write a prompt and press Send.' : 'Paste an API key first.'} The answer then appears here.`;
  $.usage.replaceChildren(element('p', key ? 'Asking…' : 'Paste an API key to see the totals.'));
  drawCurl();
  if (!key) return;
  if (keyProblem(key)) return ask(keyProblem(key));
  try {
    const { data: all } = await get('/v1/models');
    const data = all.filter(({ id }) => !id.includes('embedding'));
    if (signal.aborted) return;
    $.model.append(...data.map(({ id }) => new Option(id, id, false, id === chosen)));
    drawCurl();
    $['key-state'].textContent = `Key accepted, ${count(data.length, 'model')}.`;
    await refreshUsage();
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === 401) $.key.setAttribute('aria-invalid', 'true');
    else opened = null; // worth asking again on the next occasion
    $.usage.replaceChildren(element('p', 'The totals are shown once the server has accepted the key.'));
    showError(error);
  }
}

async function refreshUsage() {
  const { signal } = account;
  if (keyProblem(readKey())) return;
  try {
    const usage = await get('/v1/usage');
    if (signal.aborted) return;
    const total = (name, n) => element('div', element('dt', name), element('dd', n.toLocaleString('en')));
    $.usage.replaceChildren(element('dl', total('Requests', usage.events),
      total('Input tokens', usage.input_tokens), total('Output tokens', usage.output_tokens)));
    if (usage.events === 0) $.usage.append(element('p', 'Nothing yet. Send a prompt.'));
  } catch {
    if (!signal.aborted) $.usage.replaceChildren(element('p', 'The totals could not be read; the next answer asks again.'));
  }
}

async function send() {
  if (stream) return;
  const key = readKey();
  const prompt = $.prompt.value;
  const model = $.model.value;
  if (keyProblem(key)) return ask(keyProblem(key), $.key);
  if (!prompt.trim()) return ask('Write a prompt first.', $.prompt);

  const { signal } = stream = new AbortController();
  const started = performance.now();
  let [chunks, first, requestId, pending, timer, state] = [0, null, null, '', null, 'Connecting…'];

  const draw = () => {
    timer = null;
    const atEnd = $.output.scrollHeight - $.output.scrollTop - $.output.clientHeight < 8;
    if (pending) $.output.append(pending); // a string becomes a text node
    pending = '';
    if (atEnd) $.output.scrollTop = $.output.scrollHeight;
    if ($.state.textContent !== state) $.state.textContent = state;
    $.state.classList.toggle('failed', state === 'Failed');
    const facts = [count(chunks, 'chunk')];
    if (first !== null) facts.push(`first token after ${Math.round(first)} ms`);
    if (requestId) facts.push(`request ${requestId}`);
    $.metrics.textContent = facts.join(' · ');
  };

  openAccount();
  $.error.replaceChildren();
  $.output.replaceChildren();
  $.output.setAttribute('aria-busy', 'true');
  setRunning(true);
  draw();
  try {
    const onOpen = (answer) => {
      requestId = answer.requestId;
      state = 'Waiting for the first token…';
      draw();
    };
    for await (const token of streamChat({ retries: 0, key, prompt, model, signal, onOpen })) {
      first ??= performance.now() - started;
      chunks += 1;
      pending += token;
      state = 'Streaming…';
      timer ??= setTimeout(draw, REPAINT_MS);
    }
    state = 'Done';
  } catch (error) {
    state = signal.aborted ? 'Stopped' : 'Failed';
    requestId = error.requestId ?? requestId;
    if (!signal.aborted) showError(error);
  } finally {
    clearTimeout(timer);
    stream = null;
    draw();
    $.output.setAttribute('aria-busy', 'false');
    setRunning(false);
    refreshUsage();
    clearTimeout(settling);
    settling = setTimeout(refreshUsage, SETTLE_MS);
  }
}

/** A button that is switched off hands its focus on, so that the keyboard is not lost. */
function setRunning(running) {
  const [on, off] = running ? [$.stop, $.send] : [$.send, $.stop];
  on.disabled = false;
  if (document.activeElement === off) on.focus();
  off.disabled = true;
}

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function drawCurl() {
  const body = { prompt: $.prompt.value || $.prompt.placeholder, model: $.model.value || undefined };
  $.curl.textContent = [
    `curl -N ${location.origin}/chat/stream`,
    '-H "Authorization: Bearer $SLUICEGATE_KEY"',
    `-H ${quote('Content-Type: application/json')}`,
    `-d ${quote(JSON.stringify(body))}`,
  ].join(' \\\n  ');
}

async function copy() {
  try {
    await navigator.clipboard.writeText($.curl.textContent); // only on https and on localhost
    $.copied.textContent = 'Copied';
  } catch {
    getSelection().selectAllChildren($.curl);
    $.copied.textContent = 'Selected; copy it with the keyboard';
  }
  setTimeout(() => ($.copied.textContent = ''), 3000);
}

$.key.value = keep();
$.key.addEventListener('change', openAccount);
$.key.addEventListener('input', () => {
  clearTimeout(typing);
  typing = setTimeout(openAccount, TYPING_MS);
});
$.prompt.addEventListener('input', drawCurl);
$.model.addEventListener('change', drawCurl);
$.send.addEventListener('click', send);
$.stop.addEventListener('click', () => stream?.abort());
$.copy.addEventListener('click', copy);
document.addEventListener('keydown', (event) => {
  if (event.isComposing || event.repeat) return;
  if (event.key === 'Escape') stream?.abort();
  if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault(); // on a button it would be a click as well
  send();
});
openAccount();
