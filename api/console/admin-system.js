/** Upstreams and models as they are configured and as they do; who changed what. */
import { Badge, html, Table, time, useAnswer, Waiting } from './base.js';
import { useState } from './vendor/hooks.js';

export function Upstreams() {
  const upstreams = useAnswer('/admin/upstreams', 5);
  const models = useAnswer('/admin/models', 30);
  if (!upstreams.data || !models.data) return html`<${Waiting} error=${upstreams.error ?? models.error}/>`;
  return html`
    <section aria-labelledby="upstreams"><h2 id="upstreams">Upstreams</h2>
      <${Table} caption="Each upstream" head=${['Name', 'Kind', 'Address', 'Key', 'Standing']} empty="No upstream."
        rows=${upstreams.data.map((one) => [one.name, one.kind, one.base_url || 'the default', one.key_hint ?? '',
    one.standing ? html`<${Badge} state=${one.standing}/>` : ''])}/>
      <p class="hint">The standing is this worker's breaker: an open one is asked last. <code>sluicegate upstream set NAME</code> adds one.</p></section>
    <section aria-labelledby="models"><h2 id="models">Models</h2>
      <${Table} caption="Each model" head=${['Model', 'Goes to', 'For', 'Changed']}
        empty="No model is configured: every name goes on to the upstream of the environment. Add one with: sluicegate model set '*' --target openai"
        rows=${models.data.map((one) => [one.name, one.targets.map(({ upstream, model }) => (model ? `${upstream}/${model}` : upstream)).join(', '),
    one.tenant_id ?? 'all tenants', time(one.updated_at)])}/></section>`;
}

export function Audit() {
  const [before, setBefore] = useState(null);
  const { data, error } = useAnswer(`/admin/audit?limit=50${before ? `&before=${before}` : ''}`);
  if (!data) return html`<${Waiting} error=${error}/>`;
  return html`<section aria-label="Changes">
    <${Table} caption="Newest changes" head=${['When (UTC)', 'Who', 'What', 'Of', 'From']} empty="Nothing was changed yet."
      rows=${data.data.map((one) => [time(one.at), one.actor, `${one.kind}.${one.action}`, one.target, one.address])}/>
    <div class="actions">
      <button type="button" disabled=${!before} onClick=${() => setBefore(null)}>Newest</button>
      <button type="button" disabled=${!data.next} onClick=${() => setBefore(data.next)}>Older</button>
    </div></section>`;
}
