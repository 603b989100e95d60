/** The admins' console at /admin/ui: sign-in, and one view for each thing there is. */
import { Overview } from './admin-overview.js';
import { Audit, Upstreams } from './admin-system.js';
import { Tenant, Tenants } from './admin-tenants.js';
import { call, Fault, html, useAction } from './base.js';
import { start } from './shell.js';
import { TenantsUsage } from './usage.js';

function SignIn({ done }) {
  const { run, busy, error } = useAction();
  const submit = (event) => {
    event.preventDefault();
    const { email, password } = Object.fromEntries(new FormData(event.target));
    run(async () => { await call('POST', '/auth/session', { email, password }); done(); });
  };
  return html`<main class="narrow"><h1>Sluicegate</h1><section aria-labelledby="sign-in"><h2 id="sign-in">Sign in as an admin</h2>
    <form onSubmit=${submit}>
      <label for="email">E-mail address</label><input id="email" name="email" autocomplete="username" required/>
      <label for="password">Password</label><input id="password" name="password" type="password" autocomplete="current-password" required/>
      <p class="hint"><code>./scripts/serve</code> printed both; in production they are <code>ADMIN_EMAIL</code> and <code>ADMIN_PASSWORD</code>.</p>
      <div class="actions"><button class="primary" disabled=${busy}>Sign in</button></div>
      <${Fault} error=${error}/>
    </form></section></main>`;
}

start({
  label: 'Console',
  probe: '/admin/audit?limit=1',
  SignIn,
  views: { '': ['Overview', Overview], tenants: ['Tenants', Tenants], usage: ['Usage', TenantsUsage],
    upstreams: ['Upstreams', Upstreams], audit: ['Audit log', Audit] },
  inner: { tenants: ['Tenant', Tenant] },
});
