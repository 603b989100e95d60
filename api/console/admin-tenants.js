/** Tenants: who they are, what they may, what they have spent of it, and whether they are let in. */
import { Badge, call, Fault, html, LimitsLeft, number, Sure, Table, time, useAction, useAnswer, Waiting, words } from './base.js';
import { Keys } from './keys.js';

const LIMITS = ['requests_per_minute', 'tokens_per_minute', 'tokens_per_day', 'tokens_per_month',
  'nano_dollars_per_day', 'nano_dollars_per_month'];
const isMoney = (name) => name.startsWith('nano_dollars');

export function Tenants() {
  const { data, error } = useAnswer('/admin/tenants', 10);
  const creating = useAction();
  const create = (event) => {
    event.preventDefault();
    const { name, max_streams: most } = Object.fromEntries(new FormData(event.target));
    creating.run(async () => {
      const { id } = await call('POST', '/admin/tenants', { name, max_streams: most ? Number(most) : null });
      location.hash = `#/tenants/${id}`;
    });
  };
  return html`<section aria-labelledby="all"><h2 id="all">All tenants</h2>
      ${data ? html`<${Table} caption="Each tenant" head=${['Name', 'State', 'Streams at once', 'Limits', 'Since']}
        empty="No tenants yet. A tenant is one of your customers: create the first one below, then issue a key for it."
        rows=${data.map((one) => [html`<a href=${`#/tenants/${one.id}`}>${one.name}</a>`, html`<${Badge} state=${one.state}/>`,
    number(one.max_streams), Object.keys(one.limits).filter((name) => name !== 'shadow').map(words).join(', ') || 'none', time(one.created_at).slice(0, 10)])}/>`
    : html`<${Waiting} error=${error}/>`}</section>
    <section aria-labelledby="new"><h2 id="new">New tenant</h2><form onSubmit=${create}><div class="fields">
      <div><label for="name">Name</label><input id="name" name="name" required maxlength="200"/></div>
      <div><label for="max_streams">Streams at once</label><input id="max_streams" name="max_streams" type="number" min="1" placeholder="the default"/></div>
      <div class="last"><button class="primary" disabled=${creating.busy}>Create tenant</button></div></div>
      <${Fault} error=${creating.error}/></form></section>`;
}

export function Tenant({ id }) {
  const path = `/admin/tenants/${encodeURIComponent(id)}`;
  const { data: tenant, error, reload } = useAnswer(path, 10);
  const acting = useAction();
  if (!tenant) return html`<${Waiting} error=${error}/>`;
  const act = (method, then) => acting.run(async () => { await call(method, then); reload(); });
  return html`<section aria-label="Who it is">
      <div class="title-row"><h2>${tenant.name}</h2><${Badge} state=${tenant.state}/></div>
      <p class="hint"><code>${tenant.id}</code> since ${time(tenant.created_at)} UTC. Its budgets' days are those of ${tenant.time_zone}.</p>
      ${tenant.state !== 'deleted' && html`<div class="actions">
        ${tenant.state === 'active' ? html`<${Sure} label="Suspend" question="Refuse all its credentials, and cut its streams, until it is resumed?" act=${() => act('POST', `${path}/suspend`)} disabled=${acting.busy}/>`
    : html`<button type="button" class="small" onClick=${() => act('POST', `${path}/resume`)} disabled=${acting.busy}>Resume</button>`}
        <${Sure} label="Delete" question="Revoke all its keys and cut its streams, for ever? Its usage stays." act=${() => act('DELETE', path)} disabled=${acting.busy}/></div>`}
      <${Fault} error=${acting.error}/></section>
    <section aria-labelledby="limits"><h2 id="limits">Limits</h2><${LimitsLeft} path=${`${path}/limits`}/>
      ${tenant.state !== 'deleted' && html`<${Edit} tenant=${tenant} path=${path} done=${reload}/>`}</section>
    <section aria-labelledby="keys"><h2 id="keys">Keys</h2><${Keys} list=${`${path}/keys`} one="/admin/keys" may=${tenant.state !== 'deleted'}/></section>`;
}

function Edit({ tenant, path, done }) {
  const { run, busy, error } = useAction();
  const save = (event) => {
    event.preventDefault();
    const { max_streams: most, ...given } = Object.fromEntries(new FormData(event.target));
    const limits = Object.fromEntries(Object.entries(given).map(([name, text]) => [name,
      text === '' ? null : isMoney(name) ? Math.round(Number(text) * 1e9) : Number(text)]));
    run(async () => { await call('PATCH', path, { max_streams: Number(most), limits }); done(); });
  };
  return html`<details><summary>Change limits</summary><form onSubmit=${save}><div class="fields">
      <div><label for="streams">Streams at once</label><input id="streams" name="max_streams" type="number" min="1" required value=${tenant.max_streams}/></div>
      ${LIMITS.map((name) => html`<div><label for=${name}>${words(name)}</label>
        <input id=${name} name=${name} type="number" min="0" step=${isMoney(name) ? 'any' : 1} placeholder="no limit"
          value=${isMoney(name) && tenant.limits[name] ? tenant.limits[name] / 1e9 : tenant.limits[name]}/></div>`)}
    </div><div class="actions"><button class="primary" disabled=${busy}>Save limits</button></div><${Fault} error=${error}/></form></details>`;
}
