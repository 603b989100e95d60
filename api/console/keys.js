/** Keys of a tenant: issue, show once, rotate, revoke. The admins' console and the customers' page have it. */
import { Badge, call, Fault, html, Sure, Table, time, useAction, useAnswer, Waiting } from './base.js';
import { useEffect, useRef, useState } from './vendor/hooks.js';

const SCOPES = { chat: true, embeddings: true, 'usage:read': true, 'tenant:admin': false };

const stateOf = (key) => (key.revoked_at ? 'revoked' : key.expires_at && new Date(key.expires_at) < new Date() ? 'expired' : 'active');

/** `list` is where they are listed and issued, `one` where each is. */
export function Keys({ list, one, may }) {
  const { data, error, reload } = useAnswer(list, 10);
  const [issued, setIssued] = useState(null);
  const acting = useAction();
  if (!data) return html`<${Waiting} error=${error}/>`;
  const act = (method, path, body) => acting.run(async () => {
    const answer = await call(method, path, body);
    if (answer.key) setIssued(answer);
    reload();
    return answer;
  });
  const issue = async (event) => {
    event.preventDefault();
    const form = event.target;
    const given = new FormData(form);
    const body = { name: given.get('name') || 'default', scopes: given.getAll('scopes') };
    const models = given.get('models').split(/[\s,]+/).filter(Boolean);
    if (models.length) body.models = models;
    if (given.get('days')) body.expires_at = new Date(Date.now() + given.get('days') * 86_400_000).toISOString();
    if (await act('POST', list, body)) form.reset();
  };
  return html`
    ${issued && html`<${ShownOnce} issued=${issued} close=${() => setIssued(null)}/>`}
    <${Table} caption="Each key" empty="No keys yet. Issue one, and give it to whoever calls the API for this tenant."
      head=${['Name', 'Id', 'Scopes', 'Last used (UTC)', 'State', '']}
      rows=${data.map((key) => [key.name, html`<code>${key.id}</code>`, key.scopes.join(', '), time(key.last_used_at) || 'never',
    html`<${Badge} state=${stateOf(key)}/>`, may && stateOf(key) === 'active' && html`<span class="buttons">
          <${Sure} label="Rotate" question="Give this key a new secret? The old one holds for a day more." act=${() => act('POST', `${one}/${key.id}/rotate`, {})} disabled=${acting.busy}/>
          <${Sure} label="Revoke" question="Revoke this key? It is refused within a second, and its streams are cut." act=${() => act('DELETE', `${one}/${key.id}`)} disabled=${acting.busy}/></span>`])}/>
    <${Fault} error=${acting.error}/>
    ${may && html`<form onSubmit=${issue} aria-label="Issue a key"><div class="fields">
      <div><label for="key-name">Name of a new key</label><input id="key-name" name="name" maxlength="200" placeholder="default"/></div>
      <div><label for="key-models">Models</label><input id="key-models" name="models" placeholder="all, or gpt-4o* claude-*"/></div>
      <div><label for="key-days">Expires in days</label><input id="key-days" name="days" type="number" min="1" placeholder="never"/></div>
      <fieldset><legend>It may</legend>${Object.entries(SCOPES).map(([scope, on]) => html`
        <label class="check"><input type="checkbox" name="scopes" value=${scope} defaultChecked=${on} checked=${on}/> ${scope}</label>`)}</fieldset>
      <div class="last"><button class="primary" disabled=${acting.busy}>Issue key</button></div></div></form>`}`;
}

function ShownOnce({ issued, close }) {
  const [said, say] = useState('');
  const text = useRef(null);
  useEffect(() => text.current.focus(), [issued.key]);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(issued.key); // only on https and on localhost
      say('Copied.');
    } catch {
      text.current.select();
      say('Selected; copy it with the keyboard.');
    }
  };
  return html`<div class="once" role="status"><label for="issued">The key ${issued.name}. It is shown this once: copy it now.</label>
    <input id="issued" readonly value=${issued.key} ref=${text} onFocus=${(event) => event.target.select()}/>
    <div class="actions"><button type="button" class="primary" onClick=${copy}>Copy</button>
      <button type="button" onClick=${close}>Done</button><span class="hint">${said}</span></div></div>`;
}
