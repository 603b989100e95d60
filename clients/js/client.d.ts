/** What goes wrong with a stream, except an abort and a wrong argument. What is not known is null. */
export class StreamError extends Error {
  constructor(message: string, details?: {
    code?: string | null; status?: number | null; requestId?: string | null;
    retryAfterSeconds?: number | null; cause?: unknown;
  });
  /** The server's own code, or one of `ClientCode`. */
  readonly code: ServerCode | ClientCode | (string & {}) | null;
  /** Of the HTTP answer: 200 when the stream itself failed. */
  readonly status: number | null;
  readonly requestId: string | null;
  readonly retryAfterSeconds: number | null;
}

export type ClientCode = 'network_error' | 'not_a_stream' | 'bad_event' | 'event_too_large' | 'stream_truncated';
export type ServerCode = 'invalid_api_key' | 'insufficient_scope' | 'model_not_allowed' | 'rate_limit_exceeded'
  | 'insufficient_quota' | 'upstream_failed';

export interface StreamOptions {
  /** A token of `POST /auth/tokens`; on a server also an API key. */
  key: string;
  prompt: string;
  /** Where the gateway is: `https://llm.example.com/chat/stream`. Without it, the page's own origin. */
  url?: string;
  /** An empty one is the server's default. */
  model?: string;
  system?: string;
  maxTokens?: number;
  signal?: AbortSignal;
  /** How often to try again before the first token, as the server allows: 2 unless you say. */
  retries?: number;
  /** For a tenant with `resume_minutes`: the same again gets the same stream, from its beginning. */
  idempotencyKey?: string;
  /** Called once, before any token. */
  onOpen?: (answer: { requestId: string | null }) => void;
  fetch?: typeof globalThis.fetch;
}

/** The tokens of an answer as they arrive. Leaving the loop closes the connection, so the server stops too. */
export function streamChat(options: StreamOptions): AsyncGenerator<string, void, void>;

/** An incremental parser of text/event-stream; it keeps only the event it is in. */
export class EventParser {
  constructor(max?: number);
  push(text: string): { event: string; data: string }[];
}

/** The error that an HTTP answer stands for; it reads the body. */
export function responseError(response: Response): Promise<StreamError>;
