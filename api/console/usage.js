/** What was used, by day and by model, tenant or key; as a chart, a table, and CSV. */
import { ask, dollars, Fault, html, number, Table, useAction, useAnswer, Waiting } from './base.js';
import { Chart } from './chart.js';
import { useMemo, useState } from './vendor/hooks.js';

const DAY_MS = 86_400_000;
const MOST_LINES = 5; // on the chart; the table has all

const since = (days) => new Date(Date.now() - (days - 1) * DAY_MS).toISOString().slice(0, 10);

const Choice = ({ id, label, value, set, options }) => html`<div><label for=${id}>${label}</label>
  <select id=${id} value=${value} onChange=${(event) => set(event.target.value)}>${options.map(([key, name]) => html`<option value=${key}>${name}</option>`)}</select></div>`;

/** By group: its tokens for each day, the biggest groups first. */
function byGroup(rows, group) {
  const days = [...new Set(rows.map((row) => row.starts_at))].sort();
  const groups = new Map();
  for (const row of rows) {
    const name = row[group] ?? 'none';
    const sums = groups.get(name) ?? { name, tokens: days.map(() => 0), total: 0, events: 0, input: 0, output: 0, cost: 0 };
    const tokens = row.input_tokens + row.output_tokens;
    sums.tokens[days.indexOf(row.starts_at)] += tokens;
    sums.total += tokens;
    sums.events += row.events;
    sums.input += row.input_tokens;
    sums.output += row.output_tokens;
    sums.cost += row.cost_nano_dollars;
    groups.set(name, sums);
  }
  return { x: days.map((day) => Date.parse(day) / 1000), groups: [...groups.values()].sort((a, b) => b.total - a.total) };
}

/** Of all tenants, for admins. */
export function TenantsUsage() {
  const { data } = useAnswer('/admin/tenants?deleted=true');
  const names = Object.fromEntries((data ?? []).map(({ id, name }) => [id, name]));
  return html`<${Usage} path="/admin/usage" names=${names} groups=${[['model', 'Model'], ['tenant', 'Tenant'], ['key', 'Key']]}/>`;
}

/** A tenant's own. */
export const OwnUsage = () => html`<${Usage} path="/v1/usage" groups=${[['model', 'Model'], ['key', 'Key'], ['end_user', 'End user']]}/>`;

/** `names` are those of tenants, where it is of all. */
function Usage({ path, names, groups: choices }) {
  const [days, setDays] = useState('30');
  const [group, setGroup] = useState('model');
  const [tenant, setTenant] = useState('');
  const query = `${path}?from=${since(Number(days))}&interval=day&group_by=${group}${tenant && `&tenant=${tenant}`}`;
  const { data, error } = useAnswer(query, 10);
  const saving = useAction();
  const { x, groups } = useMemo(() => byGroup(data?.data ?? [], group), [data, group]);
  const called = (name) => (group === 'tenant' ? names[name] ?? name : name);
  const lines = useMemo(() => groups.slice(0, MOST_LINES).map(({ name, tokens }) => [called(name), tokens]), [groups, names && Object.values(names).join()]);
  const save = () => saving.run(async () => {
    const blob = await (await ask('GET', `${query}&format=csv`)).blob();
    const link = Object.assign(document.createElement('a'), { href: URL.createObjectURL(blob), download: 'usage.csv' });
    link.click();
    URL.revokeObjectURL(link.href);
  });
  return html`<section aria-label="Which usage"><div class="fields">
      <${Choice} id="days" label="Days" value=${days} set=${setDays} options=${[['7', 'The last 7'], ['30', 'The last 30'], ['90', 'The last 90']]}/>
      <${Choice} id="group" label="By" value=${group} set=${setGroup} options=${choices}/>
      ${names && html`<${Choice} id="tenant" label="Of" value=${tenant} set=${setTenant} options=${[['', 'All tenants'], ...Object.entries(names)]}/>`}
      <div class="last"><button type="button" onClick=${save} disabled=${saving.busy}>Download CSV</button></div>
    </div><${Fault} error=${saving.error}/></section>
    <section aria-labelledby="tokens"><h2 id="tokens">Tokens by day</h2>
      ${data ? html`${groups.length > 0 && html`<${Chart} label=${`Tokens by day and ${group}; the table below has the sums`} x=${x} lines=${lines} points=${true} seconds=${Number(days) * DAY_MS / 1000}/>`}
        <${Table} caption="Sums by group" head=${[group, 'Requests', 'Tokens in', 'Tokens out', 'Cost']} empty="Nothing was used in these days. A stream appears here as soon as it has ended."
          rows=${groups.map((one) => [called(one.name), number(one.events), number(one.input), number(one.output), dollars(one.cost)])}/>
        ${data.next && html`<p class="hint">There is more than a page of it; the CSV has all.</p>`}` : html`<${Waiting} error=${error}/>`}
    </section>`;
}
