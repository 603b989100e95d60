/**
 * A client for `POST /chat/stream`: fetch, a body reader and an incremental event parser.
 * No dependencies; runs in browsers and in Node 18 or newer.
 *
 *   for await (const token of streamChat({ key, prompt: 'Hello' })) show(token);
 */

/**
 * Everything that can go wrong with a stream, except an abort and a wrong argument.
 *
 * `code` is the server's own code, or one of this client's: `network_error` (no answer at all),
 * `not_a_stream` (a 200 of another content type), `bad_event` (an event that is not JSON),
 * `event_too_large`, `stream_truncated` (the stream ended before `[DONE]`).
 */
export class StreamError extends Error {
  /**
   * @param {string} message
   * @param {{code?: ?string, status?: ?number, requestId?: ?string,
   *   retryAfterSeconds?: ?number, cause?: unknown}} [details] what is not known is null
   */
  constructor(message, { code, status, requestId, retryAfterSeconds, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'StreamError';
    this.code = code ?? null;
    this.status = status ?? null; // of the HTTP answer: 200 when the stream itself failed
    this.requestId = requestId ?? null;
    this.retryAfterSeconds = retryAfterSeconds ?? null;
  }
}

/**
 * An incremental parser of the text/event-stream format. It keeps only the event it is in.
 * A line ends in LF, CR or CRLF and in nothing else, however the text was cut into pieces.
 */
export class EventParser {
  #max;
  #line = ''; // the line that has no end yet
  #event = '';
  #data = null; // null: no data field so far, which is not the same as an empty one
  #afterCr = false;
  #started = false;
  #error = null;

  /** @param {number} [max] the most characters to hold for an event that is not complete yet */
  constructor(max = 1024 * 1024) {
    this.#max = max;
  }

  /**
   * @param {string} text the next piece of the stream
   * @returns {{event: string, data: string}[]} the events this piece completed
   * @throws {StreamError} `event_too_large`, for good; after completed events the next call throws it
   */
  push(text) {
    if (this.#error) throw this.#error;
    const events = [];
    if (text === '') return events;
    if (!this.#started && text[0] === '\uFEFF') text = text.slice(1);
    if (this.#afterCr && text[0] === '\n') text = text.slice(1); // the other half of a torn CRLF
    this.#started = true;
    this.#afterCr = text.endsWith('\r');
    let from = 0;
    try {
      for (const { 0: end, index } of text.matchAll(/\r\n?|\n/g)) {
        this.#hold(text.slice(from, index));
        this.#endLine(events);
        from = index + end.length;
      }
      this.#hold(text.slice(from));
    } catch (error) {
      this.#error = error;
      if (events.length === 0) throw error;
    }
    return events;
  }

  #hold(piece) {
    this.#line += piece;
    if (this.#line.length + this.#event.length + (this.#data?.length ?? 0) > this.#max) {
      throw new StreamError('The server sent an event that is too large.', { code: 'event_too_large' });
    }
  }

  #endLine(events) {
    const line = this.#line;
    this.#line = '';
    if (line === '') {
      if (this.#data !== null) events.push({ event: this.#event || 'message', data: this.#data });
      this.#event = '';
      this.#data = null;
      return;
    }
    const [, field, value] = /^([^:]*)(?:: ?([^]*))?$/.exec(line); // a comment's field name is empty
    if (field === 'data') this.#data = this.#data === null ? value ?? '' : `${this.#data}\n${value ?? ''}`;
    else if (field === 'event') this.#event = value ?? '';
  }
}

/**
 * Sends one prompt and yields the answer's tokens as they arrive. Leaving the loop early closes the
 * connection, so the server stops too; while the loop waits for a token, only `signal` can stop it.
 *
 * @param {{url?: string, key: string, prompt: string, model?: string, system?: string,
 *   maxTokens?: number, signal?: AbortSignal, retries?: number, idempotencyKey?: string,
 *   onOpen?: (answer: {requestId: ?string}) => void, fetch?: typeof fetch}} options an empty model is the
 *   server's default; `retries` are before the first token; onOpen precedes any token
 * @returns {AsyncGenerator<string, void, void>}
 * @throws {StreamError} see its codes
 * @throws the signal's reason (an AbortError unless you gave another) once the signal is aborted
 */
export async function* streamChat({
  url = '/chat/stream', key, prompt, model, system, maxTokens, signal, retries = 2, idempotencyKey, onOpen,
  fetch: f = globalThis.fetch,
}) {
  const headers = new Headers({ Authorization: `Bearer ${key}`, 'Content-Type': 'application/json' });
  if (idempotencyKey) headers.set('Idempotency-Key', idempotencyKey);
  const body = JSON.stringify({ prompt, model: model || undefined, system, max_tokens: maxTokens });
  const response = await opened(() => f(url, { method: 'POST', headers, body, signal }), retries, signal);
  const reader = response.body.getReader();
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true }); // the parser drops the one BOM
  const parser = new EventParser();
  let ended = false; // the server said its last word, so a cancel now would look like a hang-up
  try {
    onOpen?.({ requestId: head(response).requestId });
    for (;;) {
      const { done, value } = await reader.read().catch((cause) => ({ done: true, value: cause }));
      signal?.throwIfAborted();
      if (done) throw new StreamError('The stream ended too early.', { code: 'stream_truncated', cause: value });
      for (const { data } of parser.push(decoder.decode(value, { stream: true }))) {
        ended = data === '[DONE]';
        if (ended) return;
        const payload = parseJson(data);
        ended = payload?.error != null;
        if (ended) throw new StreamError(...errorIn(payload, 'The stream failed.'));
        if (typeof payload?.token === 'string') yield payload.token;
        signal?.throwIfAborted();
      }
      parser.push(''); // throws if what follows these events is too large
    }
  } catch (error) {
    throw error instanceof StreamError ? Object.assign(error, head(response)) : error;
  } finally {
    if (!ended) reader.cancel().catch(() => {});
  }
}

const PASSING = new Set([408, 429, 502, 503, 504]);
const LONGEST_WAIT_SECONDS = 60; // who has to wait for longer is told so instead

/** A stream's answer: asked again, up to `retries` times, where waiting may help. */
async function opened(request, retries, signal) {
  for (let attempt = 0; ; attempt += 1) {
    let error;
    let told = null;
    try {
      const response = await request();
      const isStream = /^text\/event-stream\b/i.test(response.headers.get('content-type') ?? '');
      if (response.ok && isStream) return response;
      told = response.headers.get('x-should-retry');
      error = await responseError(response);
    } catch (cause) {
      error = new StreamError('The server could not be reached.', { code: 'network_error', cause });
    }
    signal?.throwIfAborted();
    const passes = error.code === 'network_error' || (PASSING.has(error.status) && error.code !== 'insufficient_quota');
    const seconds = error.retryAfterSeconds ?? 0.5 * 2 ** attempt * (0.5 + Math.random());
    if (attempt >= retries || !passes || told === 'false' || seconds > LONGEST_WAIT_SECONDS) throw error;
    await pause(seconds, signal);
  }
}

/** Rejects with the signal's reason as soon as it is aborted. */
function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => { clearTimeout(timer); reject(signal.reason); };
    const timer = setTimeout(() => { signal?.removeEventListener('abort', stop); resolve(); }, seconds * 1000);
    signal?.addEventListener('abort', stop, { once: true });
  });
}

/**
 * The StreamError that an HTTP answer stands for; it reads the body.
 * @param {Response} response an error answer, or a 200 that is not what was asked for
 * @returns {Promise<StreamError>}
 */
export async function responseError(response) {
  if (response.ok) {
    response.body?.cancel().catch(() => {});
    return new StreamError('The answer is not of the expected kind.', { ...head(response), code: 'not_a_stream' });
  }
  const body = await response.json().catch(() => null); // a proxy's error page is not JSON
  const [message, { code }] = errorIn(body, `The server answered ${response.status}.`);
  return new StreamError(message, { ...head(response), code });
}

/** The message and code of an HTTP error's `{error: {message, code}}` or an event's `{error: message, code}`. */
function errorIn(body, otherwise) {
  const { error, code: beside } = body ?? {};
  const { message, code } = typeof error === 'string' ? { message: error, code: beside } : error ?? {};
  return [message ?? otherwise, { code }];
}

/** What an answer's head tells about it. Retry-After is a number of seconds or a date. */
function head({ status, headers }) {
  const retry = headers.get('retry-after') ?? '';
  const seconds = /^\d+$/.test(retry) ? Number(retry) : Math.ceil((Date.parse(retry) - Date.now()) / 1000);
  const retryAfterSeconds = Number.isNaN(seconds) ? null : Math.max(0, seconds);
  return { status, requestId: headers.get('x-request-id'), retryAfterSeconds };
}

function parseJson(data) {
  try {
    return JSON.parse(data);
  } catch (cause) {
    throw new StreamError('The server sent an event that is not JSON.', { code: 'bad_event', cause });
  }
}
