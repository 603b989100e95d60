/** What goes on now: numbers over our own SSE, once a second; the streams that run, every two seconds. */
import { ask, Badge, call, Fault, html, number, Sure, Table, useAction, useAnswer, Waiting } from './base.js';
import { Chart } from './chart.js';
import { EventParser } from './client.js';
import { useEffect, useState } from './vendor/hooks.js';

const KEEP = 120; // seconds on the chart
const AGAIN_MS = 1000;

/** The last event of /admin/live, and those before it; it is asked again when it ends. */
function useLive() {
  const [state, set] = useState({ history: [] });
  useEffect(() => {
    const gone = new AbortController();
    (async () => {
      while (!gone.signal.aborted) {
        try {
          const { body } = await ask('GET', '/admin/live', undefined, gone);
          const parser = new EventParser();
          const decoder = new TextDecoder();
          for (const reader = body.getReader(); ;) {
            const { done, value } = await reader.read();
            if (done) break;
            for (const { data } of parser.push(decoder.decode(value, { stream: true }))) {
              const now = { ...JSON.parse(data), at: Date.now() / 1000 };
              set(({ history }) => ({ now, history: [...history.slice(1 - KEEP), now] }));
            }
          }
        } catch (error) {
          if (gone.signal.aborted || error.status === 401) return;
          set((old) => ({ ...old, error }));
        }
        await new Promise((resume) => setTimeout(resume, AGAIN_MS));
      }
    })();
    return () => gone.abort();
  }, []);
  return state;
}

const Tile = ({ name, value }) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`;

export function Overview() {
  const { now, history, error } = useLive();
  if (!now) return html`<${Waiting} error=${error}/>`;
  const refused = Object.entries(now.refusals).sort((a, b) => b[1] - a[1]);
  return html`
    <section aria-labelledby="now"><h2 id="now">Now</h2>
      <dl class="tiles">
        <${Tile} name="Open streams" value=${number(now.open_streams)}/>
        <${Tile} name="Tokens/s" value=${number(now.tokens_per_second)}/>
        <${Tile} name="Refusals/s" value=${number(now.refusals_per_second)}/>
        <${Tile} name="Waiting" value=${number(now.waiting_requests)}/>
        <${Tile} name="Workers" value=${number(now.workers)}/>
      </dl>
      ${now.spool_bytes > 0 && html`<p class="error" role="alert"><strong>The database is away: ${number(now.spool_bytes)} bytes wait on disk.</strong></p>`}
      <${Chart} label="Output tokens per second, the last two minutes" seconds=${KEEP} x=${history.map(({ at }) => at)}
        lines=${[['Tokens/s', history.map((one) => one.tokens_per_second)]]}/>
    </section>
    <section aria-labelledby="running"><h2 id="running">Live streams</h2><${Streams}/></section>
    <div class="columns">
      <section aria-labelledby="health"><h2 id="health">Upstreams</h2>
        <${Table} caption="How upstreams stand" head=${['Upstream', 'Standing']} empty="No upstream."
          rows=${Object.entries(now.upstreams).map(([name, standings]) => [name, Object.keys(standings).map((one) => html`<${Badge} state=${one}/> `)])}/></section>
      <section aria-labelledby="refused"><h2 id="refused">Refusals since the start</h2>
        <${Table} caption="Refusals by limit" head=${['Limit', 'Refused']} empty="Nobody was refused."
          rows=${refused.map(([limit, count]) => [limit.replaceAll('_', ' '), number(count)])}/></section>
    </div>`;
}

function Streams() {
  const { data, error, reload } = useAnswer('/admin/streams', 2);
  const { data: tenants } = useAnswer('/admin/tenants?deleted=true', 30);
  const ending = useAction();
  if (!data) return html`<${Waiting} error=${error}/>`;
  const names = Object.fromEntries((tenants ?? []).map(({ id, name }) => [id, name]));
  const end = (id) => ending.run(async () => { await call('DELETE', `/admin/streams/${id}`); reload(); });
  return html`<${Fault} error=${ending.error}/><${Table} caption="Streams that run" empty="No stream runs. Send one from the playground at / and it appears here."
    head=${['Tenant', 'Model', 'Age', 'Tokens out', 'State', '']}
    rows=${data.map((one) => [html`<a href=${`#/tenants/${one.tenant_id}`}>${names[one.tenant_id] ?? one.tenant_id}</a>`,
    one.model, `${number(one.age_seconds)} s`, number(one.output_tokens), html`<${Badge} state=${one.state}/>`,
    html`<${Sure} label="End" question="End this stream? What it has used is on the ledger." act=${() => end(one.id)} disabled=${ending.busy}/>`])}/>`;
}
