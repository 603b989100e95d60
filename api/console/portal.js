/** The customers' page at /portal, for a tenant's own admins: what runs, keys, usage, a playground, how to integrate. */
import { call, Fault, html, useAction } from './base.js';
import { Keys } from './keys.js';
import { Integrate, Overview, Playground } from './portal-views.js';
import { start } from './shell.js';
import { OwnUsage } from './usage.js';

function SignIn({ done }) {
  const { run, busy, error } = useAction();
  const submit = (event) => {
    event.preventDefault();
    const key = new FormData(event.target).get('key').trim();
    run(async () => { await call('POST', '/auth/session/key', { key }); done(); });
  };
  return html`<main class="narrow"><h1>Sluicegate</h1><section aria-labelledby="sign-in"><h2 id="sign-in">Your keys and your usage</h2>
    <form onSubmit=${submit}>
      <label for="key">API key</label><input id="key" name="key" type="password" autocomplete="off" required/>
      <p class="hint">One with the scope <code>tenant:admin</code>. Whoever runs this gateway issues the first one for you.</p>
      <div class="actions"><button class="primary" disabled=${busy}>Sign in</button></div>
      <${Fault} error=${error}/>
    </form></section></main>`;
}

const OwnKeys = () => html`<section aria-labelledby="keys"><h2 id="keys">Your keys</h2><${Keys} list="/v1/keys" one="/v1/keys" may=${true}/></section>`;

start({
  label: 'Your account',
  probe: '/v1/limits',
  SignIn,
  views: { '': ['Overview', Overview], keys: ['Keys', OwnKeys], usage: ['Usage', OwnUsage],
    playground: ['Playground', Playground], integrate: ['Integrate', Integrate] },
});
