/** What the admins' console and the customers' page are put into: sign-in, navigation, one view at a time. */
import { call, html, SIGNED_OUT } from './base.js';
import { useEffect, useRef, useState } from './vendor/hooks.js';
import { render } from './vendor/preact.js';

const here = () => location.hash.replace(/^#\/?/, '').split('/').map(decodeURIComponent);

/** `views` are titles and components by path; `inner` those of one thing of a view. `probe` tells whether one is signed in. */
function Shell({ views, inner = {}, SignIn, probe, label }) {
  const [signedIn, setSignedIn] = useState(undefined);
  const [[view, id], go] = useState(here);
  const top = useRef(null);
  useEffect(() => {
    const out = () => setSignedIn(false);
    const moved = () => { go(here()); top.current?.focus(); };
    addEventListener(SIGNED_OUT, out);
    addEventListener('hashchange', moved);
    call('GET', probe).then(() => setSignedIn(true), out);
    return () => { removeEventListener(SIGNED_OUT, out); removeEventListener('hashchange', moved); };
  }, []);
  if (signedIn === undefined) return html`<main class="narrow"><p class="hint" role="status">One moment…</p></main>`;
  if (!signedIn) return html`<${SignIn} done=${() => setSignedIn(true)}/>`;
  const [title, View] = (id && inner[view]) || views[view] || views[''];
  document.title = `${title} · Sluicegate`;
  const leave = () => call('POST', '/auth/logout').catch(() => {}).then(() => setSignedIn(false));
  return html`
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); top.current.focus(); }}>Skip to the content</a>
    <header class="bar"><strong>Sluicegate</strong>
      <nav aria-label=${label}>${Object.entries(views).map(([path, [name]]) => html`
        <a href=${`#/${path}`} aria-current=${path === view ? 'page' : undefined}>${name}</a>`)}</nav>
      <button type="button" class="small" onClick=${leave}>Sign out</button></header>
    <main id="main"><h1 tabindex="-1" ref=${top}>${title}</h1><${View} key=${`${view}/${id}`} id=${id}/></main>`;
}

/** Show it. */
export function start(options) {
  const root = document.getElementById('console');
  root.replaceChildren();
  render(html`<${Shell} ...${options}/>`, root);
}
