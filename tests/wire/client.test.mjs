// Unit tests of the streaming client that the page uses. Run: node --test tests/wire/client.test.mjs
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import http from 'node:http';
import { describe, test } from 'node:test';

// Through a data: URL, so that every Node reads the file as a module; it stands in no npm package.
const source = await readFile(new URL('../../clients/js/client.js', import.meta.url), 'utf8');
const { EventParser, StreamError, responseError, streamChat } = await import(
  `data:text/javascript;charset=utf-8,${encodeURIComponent(source)}`
);

const encode = (text) => new TextEncoder().encode(text);
const token = (text) => `data: ${JSON.stringify({ token: text })}\n\n`;
const DONE = 'data: [DONE]\n\n';

/** Everything a new parser makes of these pieces. */
const parse = (...pieces) => {
  const parser = new EventParser();
  return pieces.flatMap((piece) => parser.push(piece));
};
const datas = (...pieces) => parse(...pieces).map(({ data }) => data);

/** Every way to cut a text in two, and the cut into single UTF-16 units. */
function* cuts(text) {
  for (let at = 0; at <= text.length; at += 1) yield [text.slice(0, at), text.slice(at)];
  yield text.split('');
}

/** A body that gives these pieces (strings or bytes), then ends, breaks or stays open. */
function body(pieces, { end = 'close' } = {}) {
  const seen = { cancelled: false };
  const queue = pieces.map((piece) => (typeof piece === 'string' ? encode(piece) : piece));
  const stream = new ReadableStream({
    pull(controller) {
      if (queue.length > 0) controller.enqueue(queue.shift());
      else if (end === 'close') controller.close();
      else if (end === 'break') controller.error(new TypeError('network error'));
      else return new Promise(() => {});
    },
    cancel() {
      seen.cancelled = true;
    },
  }, { highWaterMark: 0 });
  return { stream, seen };
}

const SSE = { 'content-type': 'text/event-stream; charset=utf-8', 'x-request-id': 'req-1' };
const answering = (content, init = {}) => async () => new Response(content, { headers: SSE, ...init });

/** Runs a stream to its end; what it yielded and what it threw. */
async function collect(options) {
  const tokens = [];
  try {
    for await (const piece of streamChat({ key: 'k', prompt: 'p', retries: 0, ...options })) tokens.push(piece);
  } catch (error) {
    return { tokens, error };
  }
  return { tokens, error: null };
}
const collectPieces = (pieces, options) => collect({ fetch: answering(body(pieces, options).stream) });

describe('EventParser', () => {
  for (const [name, end] of [['LF', '\n'], ['CR', '\r'], ['CRLF', '\r\n']]) {
    test(`lines may end in ${name}, wherever the text is cut`, () => {
      const text = `data: a${end}${end}data: b${end}data: c${end}${end}`;
      for (const pieces of cuts(text)) assert.deepEqual(datas(...pieces), ['a', 'b\nc'], JSON.stringify(pieces));
    });
  }

  test('line ends may be mixed within one stream', () => {
    for (const pieces of cuts('data: a\r\ndata: b\rdata: c\n\r\ndata: d\r\r')) {
      assert.deepEqual(datas(...pieces), ['a\nb\nc', 'd'], JSON.stringify(pieces));
    }
  });

  test('a CRLF torn between two pieces ends one line, not two', () => {
    assert.deepEqual(datas('data: a\r', '\ndata: b\r', '\n\r', '\n'), ['a\nb']);
  });

  test('an empty piece between the halves of a CRLF changes nothing', () => {
    assert.deepEqual(datas('data: a\r', '', '\ndata: b\n\n'), ['a\nb']);
  });

  test('a CR at the end of a piece ends its line at once', () => {
    assert.deepEqual(datas('data: a\r\r'), ['a']);
  });

  for (const [name, char] of [
    ['U+2028', '\u2028'], ['U+2029', '\u2029'], ['U+0085', '\u0085'], ['vertical tab', '\v'], ['form feed', '\f'], ['NUL', '\0'],
  ]) {
    test(`${name} does not end a line`, () => {
      assert.deepEqual(datas(`data: a${char}b\n\n`), [`a${char}b`]);
    });
  }

  test('one BOM at the start of the stream is dropped, also when it is a piece of its own', () => {
    assert.deepEqual(datas('\uFEFFdata: a\n\n'), ['a']);
    assert.deepEqual(datas('\uFEFF', 'data: a\n\n'), ['a']);
    assert.deepEqual(datas('', '\uFEFFdata: a\n\n'), ['a']);
  });

  test('a second BOM and a BOM later in the stream are text', () => {
    assert.deepEqual(datas('\uFEFF\uFEFFdata: a\n\ndata: b\n\n'), ['b']);
    assert.deepEqual(datas('\uFEFF', '\uFEFFdata: a\n\ndata: b\n\n'), ['b']);
    assert.deepEqual(datas('data: a\n\n', '\uFEFFdata: b\n\n'), ['a']);
    assert.deepEqual(datas('data: \uFEFFa\n\n'), ['\uFEFFa']);
  });

  test('comments are ignored before, between and within events', () => {
    assert.deepEqual(datas(': hi\ndata: a\n: keep-alive\ndata: b\n\n: keep-alive\n:\n::\n\ndata: c\n\n'), ['a\nb', 'c']);
  });

  test('several data lines are joined with a newline, and an empty one counts', () => {
    assert.deepEqual(datas('data: a\ndata:\ndata\ndata: b\n\n'), ['a\n\n\nb']);
  });

  test('one space after the colon is dropped, and only one, and no tab', () => {
    assert.deepEqual(datas('data:a\n\n', 'data: a\n\n', 'data:  a \n\n', 'data:\ta\n\n'), ['a', 'a', ' a ', '\ta']);
  });

  test('only the first colon separates a field from its value', () => {
    assert.deepEqual(datas('data: a: b:c\n\n'), ['a: b:c']);
  });

  test('an event without a data field is not dispatched, and its name does not leak into the next', () => {
    assert.deepEqual(parse('event: ping\n\ndata: a\n\n'), [{ event: 'message', data: 'a' }]);
    assert.deepEqual(parse('\n\n\n: x\n\nid: 7\nretry: 10\n\n'), []);
  });

  test('an empty data field is dispatched as an empty string', () => {
    assert.deepEqual(datas('data\n\n', 'data:\n\n', 'data: \n\n'), ['', '', '']);
  });

  test('the event field names the event, the last one wins, and the default is message', () => {
    assert.deepEqual(parse('event: one\nevent: two\ndata: a\n\nevent:\ndata: b\n\n'), [
      { event: 'two', data: 'a' },
      { event: 'message', data: 'b' },
    ]);
  });

  test('unknown fields, and names that only resemble data, are ignored', () => {
    assert.deepEqual(datas('Data: x\n data: x\ndata : x\ndatas: x\nfoo\nid: 1\nretry: 5\ndata: a\n\n'), ['a']);
  });

  test('an event is dispatched by its blank line, not before', () => {
    const parser = new EventParser();
    assert.deepEqual(parser.push('data: a'), []);
    assert.deepEqual(parser.push('\n'), []);
    assert.deepEqual(parser.push('\n'), [{ event: 'message', data: 'a' }]);
  });

  const tooLarge = (error) => error instanceof StreamError && error.code === 'event_too_large';

  test('a line without an end is refused once it passes the limit', () => {
    const parser = new EventParser(20);
    parser.push('data: 67890123');
    parser.push('456789');
    assert.throws(() => parser.push('x'), tooLarge);
  });

  test('many short data lines of one event are refused once they pass the limit together', () => {
    const parser = new EventParser(20);
    assert.throws(() => {
      for (let i = 0; i < 10; i += 1) parser.push('data: abc\n');
    }, tooLarge);
  });

  test('empty data lines without end are refused too', () => {
    assert.throws(() => new EventParser(20).push('data\n'.repeat(100)), tooLarge);
  });

  test('the name of an event counts towards the limit', () => {
    const parser = new EventParser(20);
    parser.push('event: 12345678\n');
    assert.throws(() => parser.push('data: 7890123'), tooLarge);
  });

  test('a comment without an end is refused too', () => {
    assert.throws(() => new EventParser(20).push(`:${'x'.repeat(30)}`), tooLarge);
  });

  test('an event that arrives whole in one piece is held to the limit as well', () => {
    assert.throws(() => new EventParser(20).push(`data: ${'x'.repeat(30)}\n\n`), tooLarge);
  });

  test('the limit is for one event: a long stream of small events and comments passes', () => {
    const parser = new EventParser(20);
    assert.equal(parser.push('data: 1\n\n'.repeat(1000)).length, 1000);
    for (let i = 0; i < 1000; i += 1) assert.deepEqual(parser.push(': keep-alive\n'), []);
    assert.deepEqual(parser.push('data: 2\n\n'), [{ event: 'message', data: '2' }]);
  });

  test('events completed before an oversized one in the same piece are not lost', () => {
    const parser = new EventParser(20);
    assert.deepEqual(parser.push(`data: a\n\ndata: ${'x'.repeat(30)}`), [{ event: 'message', data: 'a' }]);
    assert.throws(() => parser.push(''), tooLarge);
  });

  test('a parser that refused an event stays refused', () => {
    const parser = new EventParser(20);
    assert.throws(() => parser.push('x'.repeat(30)), tooLarge);
    assert.throws(() => parser.push('\n\ndata: a\n\n'), tooLarge);
  });

  test('the default limit is 1 MiB', () => {
    const parser = new EventParser();
    parser.push('x'.repeat(1024 * 1024));
    assert.throws(() => parser.push('x'), tooLarge);
  });
});

describe('streamChat: the request', () => {
  /** The request that these options make. */
  async function requestOf(options) {
    let sent;
    await collect({
      ...options,
      fetch: async (url, init) => {
        sent = { url, ...init };
        return new Response(DONE, { headers: SSE });
      },
    });
    return sent;
  }

  test('it is a POST to /chat/stream with the key as a bearer token and a JSON body', async () => {
    const sent = await requestOf({ key: 'sk-1', prompt: 'Grüß "dich"' });
    assert.equal(sent.url, '/chat/stream');
    assert.equal(sent.method, 'POST');
    assert.equal(sent.headers.get('authorization'), 'Bearer sk-1');
    assert.equal(sent.headers.get('content-type'), 'application/json');
    assert.deepEqual(JSON.parse(sent.body), { prompt: 'Grüß "dich"' });
  });

  test('model, system and maxTokens are sent under the names of the API', async () => {
    const sent = await requestOf({ url: '/x', model: 'm', system: 's', maxTokens: 5 });
    assert.equal(sent.url, '/x');
    assert.deepEqual(JSON.parse(sent.body), { prompt: 'p', model: 'm', system: 's', max_tokens: 5 });
  });

  test('an empty model is left out, so that the server takes its default', async () => {
    assert.deepEqual(JSON.parse((await requestOf({ model: '' })).body), { prompt: 'p' });
  });

  test('the signal is handed to fetch', async () => {
    const { signal } = new AbortController();
    assert.equal((await requestOf({ signal })).signal, signal);
  });

  test('nothing is sent before the first token is asked for', async () => {
    const stream = streamChat({ key: 'k', prompt: 'p', fetch: () => assert.fail('fetched') });
    await stream.return();
  });

  test('a key that cannot stand in a header is a TypeError, and nothing is sent', async () => {
    const { error } = await collect({ key: 'a\nb', fetch: () => assert.fail('fetched') });
    assert.ok(error instanceof TypeError);
  });
});

describe('streamChat: tokens', () => {
  test('it yields the tokens in order and ends at [DONE]', async () => {
    assert.deepEqual(await collectPieces([token('a') + token('b'), token('c'), DONE]), { tokens: ['a', 'b', 'c'], error: null });
  });

  test('every cut of the bytes gives the same tokens, through CRLF, comments, a BOM and torn UTF-8', async () => {
    const text = '\uFEFF: keep-alive\r\ndata: {"token": "Grü"}\r\n\r\n: keep-alive\n'
      + 'data: {"token":"🌊\u2028世"}\n\n: keep-alive\rdata: [DONE]\r\r';
    const bytes = encode(text);
    const expected = { tokens: ['Grü', '🌊\u2028世'], error: null };
    assert.deepEqual(await collectPieces([...bytes].map((byte) => Uint8Array.of(byte))), expected);
    for (let at = 0; at <= bytes.length; at += 1) {
      assert.deepEqual(await collectPieces([bytes.slice(0, at), bytes.slice(at)]), expected, `cut at ${at}`);
    }
  });

  test('only one BOM is dropped: the decoder does not take a second', async () => {
    assert.deepEqual((await collectPieces(['\uFEFF\uFEFFdata: {"token":"lost"}\n\n', token('kept'), DONE])).tokens, ['kept']);
  });

  test('bytes that are not UTF-8 become replacement characters and do not break the stream', async () => {
    const broken = Uint8Array.of(...encode('data: {"token":"a'), 0xff, ...encode('b"}\n\n'));
    assert.deepEqual(await collectPieces([broken, DONE]), { tokens: ['a\uFFFDb'], error: null });
  });

  test('a token is yielded as soon as its event is complete, while the stream stays open', async () => {
    const stream = streamChat({ key: 'k', prompt: 'p', fetch: answering(body([token('a')], { end: 'open' }).stream) });
    assert.deepEqual(await stream.next(), { value: 'a', done: false });
    await stream.return();
  });

  test('an empty token is a token', async () => {
    assert.deepEqual((await collectPieces([token(''), DONE])).tokens, ['']);
  });

  test('events of an unknown shape are skipped', async () => {
    const odd = ['{}', 'null', '5', '"x"', '[]', '{"token":5}', '{"usage":{"n":1}}', '{"error":null}'];
    const pieces = odd.map((data) => `data: ${data}\n\n`);
    assert.deepEqual(await collectPieces([...pieces, token('a'), DONE]), { tokens: ['a'], error: null });
  });

  test('what comes after [DONE] is ignored', async () => {
    assert.deepEqual(await collectPieces([DONE + token('late'), token('later')]), { tokens: [], error: null });
  });

  test('onOpen is called once with the request id, before the first token', async () => {
    const calls = [];
    const stream = streamChat({
      key: 'k', prompt: 'p', onOpen: (answer) => calls.push(answer), fetch: answering(token('a') + token('b') + DONE),
    });
    await stream.next();
    assert.deepEqual(calls, [{ requestId: 'req-1' }]);
    await stream.next();
    await stream.next();
    assert.equal(calls.length, 1);
  });
});

describe('streamChat: errors', () => {
  const failing = (status, content, headers = {}) =>
    collect({ fetch: answering(content, { status, headers: { 'x-request-id': 'req-9', ...headers } }) });

  test('an HTTP error carries message, code, status, request id and Retry-After', async () => {
    const content = JSON.stringify({ error: { message: 'Slow down.', type: 't', param: null, code: 'rate_limited' } });
    const { tokens, error } = await failing(429, content, { 'retry-after': '7' });
    assert.deepEqual(tokens, []);
    assert.ok(error instanceof StreamError);
    assert.ok(error instanceof Error);
    const { name, message, code, status, requestId, retryAfterSeconds } = error;
    assert.deepEqual({ name, message, code, status, requestId, retryAfterSeconds }, {
      name: 'StreamError', message: 'Slow down.', code: 'rate_limited', status: 429, requestId: 'req-9', retryAfterSeconds: 7,
    });
  });

  for (const [name, content] of [['HTML', '<h1>Bad gateway</h1>'], ['nothing', ''], ['null', 'null'], ['another shape', '{"detail":"x"}']]) {
    test(`an HTTP error whose body is ${name} still has its status and a message`, async () => {
      const { error } = await failing(502, content);
      assert.deepEqual([error.status, error.code, error.message], [502, null, 'The server answered 502.']);
    });
  }

  test('without Retry-After and request id these fields are null', async () => {
    const { error } = await collect({ fetch: async () => new Response('', { status: 500 }) });
    assert.deepEqual([error.retryAfterSeconds, error.requestId], [null, null]);
  });

  test('a Retry-After date is turned into seconds, and one in the past into 0', async () => {
    const inAMinute = (await failing(503, '', { 'retry-after': new Date(Date.now() + 60_000).toUTCString() })).error;
    assert.ok(inAMinute.retryAfterSeconds > 50 && inAMinute.retryAfterSeconds <= 60, String(inAMinute.retryAfterSeconds));
    const past = (await failing(503, '', { 'retry-after': 'Wed, 21 Oct 2015 07:28:00 GMT' })).error;
    assert.equal(past.retryAfterSeconds, 0);
  });

  test('a Retry-After that means nothing is null', async () => {
    assert.equal((await failing(503, '', { 'retry-after': 'soon' })).error.retryAfterSeconds, null);
  });

  test('responseError describes any other answer of the API in the same way', async () => {
    const content = JSON.stringify({ error: { message: 'No.', code: 'invalid_api_key' } });
    const error = await responseError(new Response(content, { status: 401, headers: { 'x-request-id': 'req-2' } }));
    assert.deepEqual([error.message, error.code, error.status, error.requestId], ['No.', 'invalid_api_key', 401, 'req-2']);
  });

  test('an error event ends the stream with its message and code, after the tokens before it', async () => {
    const { tokens, error } = await collectPieces([`${token('a')}data: {"error": "It broke.", "code": "backend_error"}\n\n${token('b')}`]);
    assert.deepEqual(tokens, ['a']);
    assert.ok(error instanceof StreamError);
    assert.deepEqual([error.message, error.code, error.status, error.requestId], ['It broke.', 'backend_error', 200, 'req-1']);
  });

  test('an error event may carry the error as an object', async () => {
    const { error } = await collectPieces(['data: {"error": {"message": "It broke.", "code": "c"}}\n\n']);
    assert.deepEqual([error.message, error.code], ['It broke.', 'c']);
  });

  test('a stream that ends without [DONE] is truncated, and its tokens were yielded', async () => {
    const { tokens, error } = await collectPieces([token('a')]);
    assert.deepEqual(tokens, ['a']);
    assert.deepEqual([error.code, error.status, error.requestId], ['stream_truncated', 200, 'req-1']);
  });

  for (const [name, pieces] of [['no bytes at all', []], ['a [DONE] without its blank line', ['data: [DONE]\n']], ['half an event', ['data: {"tok']]]) {
    test(`a stream of ${name} is truncated`, async () => {
      const { tokens, error } = await collectPieces(pieces);
      assert.deepEqual([tokens, error?.code], [[], 'stream_truncated']);
    });
  }

  test('a connection that breaks in the stream is truncated, with the reason as its cause', async () => {
    const { tokens, error } = await collectPieces([token('a')], { end: 'break' });
    assert.deepEqual([tokens, error.code, error.cause.message], [['a'], 'stream_truncated', 'network error']);
  });

  test('a connection that breaks after [DONE] is no error', async () => {
    assert.equal((await collectPieces([DONE], { end: 'break' })).error, null);
  });

  test('no answer at all is network_error, with the reason as its cause', async () => {
    const cause = new TypeError('Failed to fetch');
    const { error } = await collect({ fetch: async () => { throw cause; } });
    assert.deepEqual([error.code, error.status, error.cause], ['network_error', null, cause]);
  });

  test('a 200 of another content type is not_a_stream, and its body is given up', async () => {
    const { stream, seen } = body(['<html>'], { end: 'open' });
    const { error } = await collect({ fetch: answering(stream, { headers: { 'content-type': 'text/html' } }) });
    assert.deepEqual([error.code, error.status, seen.cancelled], ['not_a_stream', 200, true]);
  });

  test('a 204 is not_a_stream', async () => {
    assert.equal((await collect({ fetch: async () => new Response(null, { status: 204 }) })).error.code, 'not_a_stream');
  });

  test('an event that is not JSON is bad_event, and the connection is closed', async () => {
    const { stream, seen } = body([token('a'), 'data: {oops\n\n'], { end: 'open' });
    const { tokens, error } = await collect({ fetch: answering(stream) });
    assert.deepEqual([tokens, error.code, error.requestId, seen.cancelled], [['a'], 'bad_event', 'req-1', true]);
  });

  test('an event beyond 1 MiB is event_too_large, after the tokens before it, and the connection is closed', async () => {
    const { stream, seen } = body([`${token('a')}data: ${'x'.repeat(1024 * 1024)}`], { end: 'open' });
    const { tokens, error } = await collect({ fetch: answering(stream) });
    assert.deepEqual([tokens, error.code, error.status, seen.cancelled], [['a'], 'event_too_large', 200, true]);
  });
});

describe('streamChat: stopping', () => {
  test('breaking out of the loop cancels the body', async () => {
    const { stream, seen } = body([token('a') + token('b')], { end: 'open' });
    for await (const piece of streamChat({ key: 'k', prompt: 'p', fetch: answering(stream) })) {
      assert.equal(piece, 'a');
      break;
    }
    assert.equal(seen.cancelled, true);
  });

  test('an error thrown in the loop reaches the caller as it is, and cancels the body', async () => {
    const { stream, seen } = body([token('a')], { end: 'open' });
    const mine = new Error('mine');
    await assert.rejects(async () => {
      for await (const _ of streamChat({ key: 'k', prompt: 'p', fetch: answering(stream) })) throw mine;
    }, mine);
    assert.equal(seen.cancelled, true);
  });

  test('a body that fails to cancel does not turn a break into an error', async () => {
    const stream = new ReadableStream({
      start: (controller) => controller.enqueue(encode(token('a'))),
      cancel: () => { throw new Error('cannot'); },
    });
    for await (const _ of streamChat({ key: 'k', prompt: 'p', fetch: answering(stream) })) break;
  });

  for (const [name, last] of [['[DONE]', DONE], ['an error event', 'data: {"error": "x", "code": "y"}\n\n']]) {
    test(`after ${name} the body is not cancelled, which would look like a hang-up to the server`, async () => {
      const { stream, seen } = body([token('a'), last], { end: 'open' });
      await collect({ fetch: answering(stream) });
      assert.equal(seen.cancelled, false);
    });
  }

  test('an abort before the start is an AbortError', async () => {
    const { error } = await collect({ signal: AbortSignal.abort(), url: 'http://127.0.0.1:9/', fetch: globalThis.fetch });
    assert.equal(error.name, 'AbortError');
  });

  test('the reason given to abort() is what is thrown', async () => {
    const mine = new Error('enough');
    const { error } = await collect({ signal: AbortSignal.abort(mine), url: 'http://127.0.0.1:9/', fetch: globalThis.fetch });
    assert.equal(error, mine);
  });

  test('after an abort no further token is yielded, even one that has arrived', async () => {
    const controller = new AbortController();
    const tokens = [];
    await assert.rejects(async () => {
      const options = { key: 'k', prompt: 'p', signal: controller.signal, fetch: answering(token('a') + token('b') + DONE) };
      for await (const piece of streamChat(options)) {
        tokens.push(piece);
        controller.abort();
      }
    }, { name: 'AbortError' });
    assert.deepEqual(tokens, ['a']);
  });

  test('an abort while an error answer is read is an AbortError', async () => {
    const controller = new AbortController();
    const stream = new ReadableStream({
      pull(body) {
        controller.abort();
        body.error(controller.signal.reason);
      },
    }, { highWaterMark: 0 });
    const { error } = await collect({ signal: controller.signal, fetch: answering(stream, { status: 500 }) });
    assert.equal(error.name, 'AbortError');
  });
});

describe('streamChat: over a real connection', () => {
  /** A server with one handler, and the options that reach it; it is closed after the test. */
  async function serve(t, handler) {
    const server = http.createServer(handler).listen(0, '127.0.0.1');
    await once(server, 'listening');
    t.after(() => {
      server.closeAllConnections();
      server.close();
    });
    return { key: 'k', prompt: 'p', url: `http://127.0.0.1:${server.address().port}/chat/stream` };
  }

  /** A handler that sends one token and keeps the stream open; `left` resolves when the client is gone. */
  function openStream() {
    let leave;
    const left = new Promise((resolve) => { leave = resolve; });
    const handler = (request, response) => {
      response.on('close', () => leave(response.writableFinished ? 'finished' : 'hung up'));
      response.writeHead(200, SSE);
      response.write(token('a'));
    };
    return { handler, left };
  }

  test('a whole answer sent byte by byte arrives, and the server sees it finished', async (t) => {
    let finish;
    const finished = new Promise((resolve) => { finish = resolve; });
    const options = await serve(t, (request, response) => {
      response.on('close', () => finish(response.writableFinished));
      response.writeHead(200, SSE);
      const bytes = encode(`: keep-alive\n${token('世界')}${token('🌊')}${DONE}`);
      const send = (at) => (at === bytes.length ? response.end() : response.write(bytes.subarray(at, at + 1), () => send(at + 1)));
      send(0);
    });
    assert.deepEqual(await collect(options), { tokens: ['世界', '🌊'], error: null });
    assert.equal(await finished, true);
  });

  test('the server sees the client leave when the loop is left', async (t) => {
    const { handler, left } = openStream();
    const options = await serve(t, handler);
    for await (const _ of streamChat(options)) break;
    assert.equal(await left, 'hung up');
  });

  test('an abort while waiting for a token is an AbortError, and the server sees the client leave', async (t) => {
    const { handler, left } = openStream();
    const controller = new AbortController();
    const stream = streamChat({ ...(await serve(t, handler)), signal: controller.signal });
    assert.deepEqual(await stream.next(), { value: 'a', done: false });
    const waiting = stream.next();
    controller.abort();
    await assert.rejects(waiting, { name: 'AbortError' });
    assert.equal(await left, 'hung up');
  });

  test('an abort before the answer begins is an AbortError, and the server sees the client leave', async (t) => {
    const controller = new AbortController();
    let leave;
    const left = new Promise((resolve) => { leave = resolve; });
    const options = await serve(t, (request, response) => {
      response.on('close', leave);
      controller.abort();
    });
    assert.equal((await collect({ ...options, signal: controller.signal })).error.name, 'AbortError');
    await left;
  });

  test('a server that drops the connection in the stream is stream_truncated', async (t) => {
    const options = await serve(t, (request, response) => {
      response.writeHead(200, SSE);
      response.write(token('a'), () => response.destroy());
    });
    const { error } = await collect(options);
    assert.equal(error.code, 'stream_truncated');
  });

  test('a server that drops the connection before it answers is network_error', async (t) => {
    const { error } = await collect(await serve(t, (request, response) => response.destroy()));
    assert.equal(error.code, 'network_error');
  });
});

describe('retries', () => {
  const refusal = (status, code, headers = {}) => new Response(JSON.stringify({ error: { message: 'no', code } }), {
    status, headers: { 'content-type': 'application/json', ...headers },
  });

  /** A fetch that gives these answers in turn, and notes how often it was asked. */
  function answers(...queue) {
    const ask = async (_url, options) => {
      ask.asked += 1;
      ask.headers = options.headers;
      const next = queue.shift();
      if (next instanceof Error) throw next;
      return next;
    };
    ask.asked = 0;
    return ask;
  }
  const good = () => new Response(body([token('a'), DONE]).stream, { headers: SSE });

  test('what passes is asked again, as the server says and as often as is said', async () => {
    for (const status of [408, 429, 502, 503, 504]) {
      const fetch = answers(refusal(status, 'x', { 'retry-after': '0' }), good());
      assert.deepEqual(await collect({ fetch, retries: 1 }), { tokens: ['a'], error: null }, String(status));
      assert.equal(fetch.asked, 2);
    }
    const fetch = answers(...[1, 2, 3].map(() => refusal(503, 'x', { 'retry-after': '0' })), good());
    assert.equal((await collect({ fetch, retries: 2 })).error.status, 503);
    assert.equal(fetch.asked, 3);
  });

  test('a connection that broke before the answer is tried again, with the same idempotency key', async () => {
    const fetch = answers(new TypeError('reset'), good());
    assert.deepEqual((await collect({ fetch, retries: 1, idempotencyKey: 'one' })).tokens, ['a']);
    assert.equal(fetch.headers.get('idempotency-key'), 'one');
  });

  test('what does not pass is not asked again', async () => {
    const refusals = [[400, 'x', {}], [401, 'invalid_api_key', {}], [429, 'insufficient_quota', { 'retry-after': '0' }],
      [429, 'x', { 'retry-after': '61' }], [503, 'x', { 'retry-after': '0', 'x-should-retry': 'false' }]];
    for (const [status, code, headers] of refusals) {
      const fetch = answers(refusal(status, code, headers), good());
      assert.equal((await collect({ fetch, retries: 5 })).error.code, code);
      assert.equal(fetch.asked, 1);
    }
  });

  test('once a token is there nothing is asked again', async () => {
    const fetch = answers(new Response(body([token('a')]).stream, { headers: SSE }), good());
    const { tokens, error } = await collect({ fetch, retries: 5 });
    assert.deepEqual([tokens, error.code, fetch.asked], [['a'], 'stream_truncated', 1]);
  });

  test('an abort ends the wait at once, with its reason', async () => {
    const stop = new AbortController();
    const fetch = async () => {
      setImmediate(() => stop.abort(new Error('enough')));
      return refusal(503, 'x', { 'retry-after': '30' });
    };
    assert.equal((await collect({ fetch, retries: 1, signal: stop.signal })).error.message, 'enough');
  });
});
