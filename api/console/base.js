/** What the console's views share: calls with the session's cookie, and a few parts of pages. */
import { responseError, StreamError } from './client.js';
import htm from './vendor/htm.js';
import { useCallback, useEffect, useState } from './vendor/hooks.js';
import { h } from './vendor/preact.js';

export const html = htm.bind(h);

/** The cookie alone opens nothing: it counts beside a header that only this origin's pages can send, and that names it. */
export const SESSION = { 'x-sluicegate-console': location.pathname.startsWith('/portal') ? 'portal' : 'admin' };
export const SIGNED_OUT = 'sluicegate-signed-out';

/** Ask the gate. Returns the Response; throws StreamError with what the server said. */
export async function ask(method, path, body, { signal } = {}) {
  const headers = body === undefined ? SESSION : { ...SESSION, 'Content-Type': 'application/json' };
  const options = { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) };
  const response = await fetch(path, options).catch((cause) => {
    signal?.throwIfAborted();
    throw new StreamError('The gateway could not be reached. Is it running, and are you online?', { code: 'network_error', cause });
  });
  if (response.ok) return response;
  const error = await responseError(response);
  if (error.status === 401 && !path.startsWith('/auth/session')) dispatchEvent(new Event(SIGNED_OUT));
  throw error;
}

/** The same; the answer's JSON, null where there is none. */
export async function call(method, path, body, options) {
  const response = await ask(method, path, body, options);
  return response.status === 204 ? null : response.json();
}

/** What a path says, asked again every `seconds` while the view is open, and by `reload`. */
export function useAnswer(path, seconds = 0) {
  const [state, set] = useState({});
  const [round, again] = useState(0);
  useEffect(() => {
    const gone = new AbortController();
    const load = () => call('GET', path, undefined, gone)
      .then((data) => set({ data, path }), (error) => gone.signal.aborted || set((old) => ({ ...old, error })));
    load();
    const timer = seconds && setInterval(load, seconds * 1000);
    return () => { gone.abort(); clearInterval(timer); };
  }, [path, seconds, round]);
  const reload = useCallback(() => again((n) => n + 1), []);
  return { data: state.path === path ? state.data : undefined, error: state.error, reload };
}

/** Runs something that changes the gate: whether it is under way, and what went wrong. */
export function useAction() {
  const [state, set] = useState({});
  const run = async (work) => {
    set({ busy: true });
    try {
      const result = await work();
      set({});
      return result;
    } catch (error) {
      set({ error });
      return undefined;
    }
  };
  return { ...state, run };
}

export const Fault = ({ error }) => html`<div class="error" role="alert">${error && html`
  <strong>${error.message}</strong>${error.retryAfterSeconds ? html`<span>Try again in ${error.retryAfterSeconds} s.</span>` : ''}
  ${error.requestId && html`<small>Request id: ${error.requestId}</small>`}`}</div>`;

/** Until an answer is there: that it is awaited, or why there is none. */
export const Waiting = ({ error }) => (error ? html`<${Fault} error=${error}/>` : html`<p class="hint" role="status">Asking…</p>`);

/** A table that scrolls by itself where it is wider than the page. `rows` are arrays of cells. */
export const Table = ({ caption, head, rows, empty }) => (rows.length === 0 ? html`<p class="empty">${empty}</p>` : html`
  <div class="scroll" tabindex="0" role="region" aria-label=${caption}><table><caption class="unseen">${caption}</caption>
    <thead><tr>${head.map((name) => html`<th scope="col">${name || html`<span class="unseen">Actions</span>`}</th>`)}</tr></thead>
    <tbody>${rows.map((cells) => html`<tr>${cells.map((cell) => html`<td>${cell}</td>`)}</tr>`)}</tbody>
  </table></div>`);

export const Badge = ({ state }) => html`<span class=${`badge ${state}`}>${state.replace('_', ' ')}</span>`;

/** A question before what cannot be undone. */
export const Sure = ({ label, question, act, disabled }) => html`
  <button type="button" class="small danger" disabled=${disabled} onClick=${() => confirm(question) && act()}>${label}</button>`;

/** Spend against each limit. */
export function LimitsLeft({ path }) {
  const { data, error } = useAnswer(path, 2);
  if (!data) return html`<${Waiting} error=${error}/>`;
  return html`<${Table} caption="What is used of each limit" head=${['Limit', 'Of whom', 'Used', 'At most', '']} empty="No limits."
    rows=${data.map((one) => {
    const used = Math.max(0, one.amount - one.remaining);
    const name = words(one.limit) + (one.shadow ? ' (shadow)' : '');
    return [name, one.of, amount(one.limit, used), amount(one.limit, one.amount),
      html`<meter min="0" max=${one.amount} high=${0.8 * one.amount} value=${used} aria-label=${`Used of ${name}`}></meter>`];
  })}/>`;
}

const NUMBER = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });
export const number = (n) => NUMBER.format(n ?? 0);
export const dollars = (nano) => `$${(nano / 1e9).toLocaleString('en', { minimumFractionDigits: 2, maximumFractionDigits: 4 })}`;
export const time = (text) => (text ? new Date(text).toISOString().slice(0, 19).replace('T', ' ') : '');
export const amount = (name, n) => (name.startsWith('nano_dollars') ? dollars(n) : number(n));
export const words = (name) => {
  const said = name.replace('nano_dollars', 'dollars').replaceAll('_', ' ');
  return said[0].toUpperCase() + said.slice(1);
};
