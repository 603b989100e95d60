/** The admins' console at /admin/ui: sign-in, and one view for each thing there is. */
import { call, Fault, html, SIGNED_OUT, useAction } from './admin-base.js';
import { Overview } from './admin-overview.js';
import { Audit, Upstreams } from './admin-system.js';
import { Tenant, Tenants } from './admin-tenants.js';
import { Usage } from './admin-usage.js';
import { useEffect, useRef, useState } from './vendor/hooks.js';
import { render } from './vendor/preact.js';

const VIEWS = { '': ['Overview', Overview], tenants: ['Tenants', Tenants], usage: ['Usage', Usage],
  upstreams: ['Upstreams', Upstreams], audit: ['Audit log', Audit] };

const here = () => location.hash.replace(/^#\/?/, '').split('/').map(decodeURIComponent);

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

function Console() {
  const [signedIn, setSignedIn] = useState(undefined);
  const [[view, id], go] = useState(here);
  const top = useRef(null);
  useEffect(() => {
    const out = () => setSignedIn(false);
    const moved = () => { go(here()); top.current?.focus(); };
    addEventListener(SIGNED_OUT, out);
    addEventListener('hashchange', moved);
    call('GET', '/admin/audit?limit=1').then(() => setSignedIn(true), out);
    return () => { removeEventListener(SIGNED_OUT, out); removeEventListener('hashchange', moved); };
  }, []);
  if (signedIn === undefined) return html`<main class="narrow"><p class="hint" role="status">One moment…</p></main>`;
  if (!signedIn) return html`<${SignIn} done=${() => setSignedIn(true)}/>`;
  const [title, View] = view === 'tenants' && id ? ['Tenant', Tenant] : VIEWS[view] ?? VIEWS[''];
  document.title = `${title} · Sluicegate`;
  const leave = () => call('POST', '/auth/logout').catch(() => {}).then(() => setSignedIn(false));
  return html`
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); top.current.focus(); }}>Skip to the content</a>
    <header class="bar"><strong>Sluicegate</strong>
      <nav aria-label="Console">${Object.entries(VIEWS).map(([path, [name]]) => html`
        <a href=${`#/${path}`} aria-current=${path === view ? 'page' : undefined}>${name}</a>`)}</nav>
      <button type="button" class="small" onClick=${leave}>Sign out</button></header>
    <main id="main"><h1 tabindex="-1" ref=${top}>${title}</h1><${View} key=${id} id=${id}/></main>`;
}

const root = document.getElementById('console');
root.replaceChildren();
render(html`<${Console}/>`, root);
