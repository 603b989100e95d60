// A React hook: const { text, error, streaming, send, stop } = useStream({ getToken, url });
import { useCallback, useEffect, useRef, useState } from 'react';
import { streamChat } from 'sluicegate-client';

/** `getToken` asks your own server, which buys a token of minutes with its API key (POST /auth/tokens). */
export function useStream({ getToken, ...options }) {
  const [state, setState] = useState({ text: '', error: null, streaming: false });
  const running = useRef(null);
  const stop = useCallback(() => running.current?.abort(), []);
  useEffect(() => stop, [stop]); // whoever leaves the page stops the stream, and is billed for no more

  const send = useCallback(async (prompt) => {
    stop();
    const mine = running.current = new AbortController();
    const show = (change) => running.current === mine && setState((old) => ({ ...old, ...change }));
    let text = '';
    show({ text, error: null, streaming: true });
    try {
      for await (const token of streamChat({ ...options, key: await getToken(), prompt, signal: mine.signal })) {
        text += token;
        show({ text });
      }
    } catch (error) {
      if (!mine.signal.aborted) show({ error });
    } finally {
      show({ streaming: false });
    }
  }, [getToken, stop, options.url, options.model]);

  return { ...state, send, stop };
}
