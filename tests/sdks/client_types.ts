// What clients/js/client.d.ts lets a TypeScript program say; compiled by a test, never run.
import { EventParser, responseError, streamChat, StreamError, type StreamOptions } from '../../clients/js/client.js';

const options: StreamOptions = { key: 'k', prompt: 'p', retries: 1, idempotencyKey: 'one', signal: new AbortController().signal };

export async function all(): Promise<string> {
  let text = '';
  try {
    for await (const token of streamChat({ ...options, onOpen: ({ requestId }) => requestId?.length })) text += token;
  } catch (error) {
    if (error instanceof StreamError && error.code === 'rate_limit_exceeded') return String(error.retryAfterSeconds);
    throw await responseError(new Response());
  }
  return text + new EventParser().push('data: x\n\n')[0].data;
}

// @ts-expect-error a prompt is needed
streamChat({ key: 'k' });
// @ts-expect-error seconds are numbers
const wrong: string = new StreamError('x').retryAfterSeconds;
