import type { HealthReport } from '../observability/health.ts';
import type { DbiStat, EnvironmentStats } from '../native/types.ts';
import { createHtmlTag, type Html, type HtmlTag } from './html.ts';
import type { DatabaseStatus, InstanceStatus, SeenSnapshot, StatusModel } from './status.ts';

/** Fits on one page's `<style>`; its hash is in the Content-Security-Policy, so it is constant. */
export const STATUS_STYLE = `
:root { color-scheme: light dark; --line: #c4c9d0; --soft: #5b6470; --bad: #b3001b; --warn: #8a5a00; --good: #1b6e35; --link: #1a56b0; --stripe: #f4f6f8 }
@media (prefers-color-scheme: dark) { :root { --line: #444b55; --soft: #a3acb8; --bad: #ff8f8f; --warn: #f0b849; --good: #7bd694; --link: #8db8ff; --stripe: #1d2229 } }
body { font: 16px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 75rem; padding: 0 1rem }
@media (prefers-color-scheme: dark) { body { background: #14181d; color: #e6e9ed } }
h1 { font-size: 1.5rem; margin: 0 0 .25rem } h2 { font-size: 1.25rem; margin: 2rem 0 .5rem } h3 { font-size: 1rem; margin: 1.25rem 0 .25rem }
a { color: var(--link) } code, dd { overflow-wrap: anywhere } td, th { overflow-wrap: break-word } .state { min-width: 9rem } code { font-size: .95em }
.soft { color: var(--soft) } .bad { color: var(--bad); font-weight: 600 } .warn { color: var(--warn); font-weight: 600 } .good { color: var(--good); font-weight: 600 }
.box { border: 1px solid; border-left-width: .5rem; padding: .5rem .75rem; margin: .75rem 0; font-weight: 400 } .box ul { margin: .25rem 0; padding-left: 1.25rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100% } caption { text-align: left; color: var(--soft) }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top }
thead th { white-space: nowrap } tbody tr:nth-child(even) { background: var(--stripe) }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap } time { white-space: nowrap }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .5rem 0 } dt { color: var(--soft) } dd { margin: 0 }
meter { width: 6rem }
`;

// Not in the template, where a formatter would change its text and so its hash.
const STYLE_ELEMENT: Html = { html: `<style>${STATUS_STYLE}</style>` };

/** Persistent flags of a DBI (lmdb.h, "Database Flags"). */
const DBI_FLAGS: readonly (readonly [number, string])[] = [
  [0x02, 'REVERSEKEY'],
  [0x04, 'DUPSORT'],
  [0x08, 'INTEGERKEY'],
  [0x10, 'DUPFIXED'],
  [0x20, 'INTEGERDUP'],
  [0x40, 'REVERSEDUP'],
];

export interface StatusPage {
  /** A text instead says why there is none. */
  readonly model: StatusModel | { readonly missing: string };
  readonly health: HealthReport;
  readonly nowMs: number;
  /** Takes secrets out of every text. */
  readonly mask: (text: string) => string;
}

/** The whole page; it needs no script, no other file and no network. */
export function renderStatusPage({ model, health, nowMs, mask }: StatusPage): string {
  const html = createHtmlTag(mask);
  const present = 'missing' in model ? undefined : model;
  const title = `${health.status}: Lightning Stream ${present?.instance ?? ''}`;
  return html`<!doctype html>
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <title>${title}</title>
        ${STYLE_ELEMENT}
      </head>
      <body>
        <header>
          <h1>Lightning Stream ${present && html`<bdi>${present.instance}</bdi>`}</h1>
          <p>
            <strong class="${statusClass(health)}">${health.status}</strong>
            <span class="soft">at ${formatTime(nowMs)}</span>
          </p>
          <nav aria-label="Other pages">
            <a href="healthz">Health (JSON)</a> · <a href="metrics">Prometheus metrics</a> ·
            <a href="storage">Storage listing</a>
          </nav>
        </header>
        <main>
          ${messages(html, 'bad', 'Failures', health.failures)}
          ${messages(html, 'warn', 'Warnings', health.warnings)}
          ${
            'missing' in model
              ? html`<p class="box bad">No figures: ${model.missing}</p>`
              : figures(html, model, nowMs)
          }
        </main>
      </body>
    </html> `.html;
}

function statusClass(health: HealthReport): string {
  return !health.ok ? 'bad' : health.has_warnings ? 'warn' : 'good';
}

function messages(
  html: HtmlTag,
  kind: 'bad' | 'warn',
  title: string,
  texts: Readonly<Record<string, string>>,
): Html | undefined {
  const items = Object.entries(texts);
  if (items.length === 0) return undefined;
  return html`<section class="box ${kind}">
    <strong>${title}</strong>
    <ul>
      ${items.map(([name, text]) => html`<li><code>${name}</code>: ${text}</li>`)}
    </ul>
  </section>`;
}

function figures(html: HtmlTag, model: StatusModel, nowMs: number): Html {
  return html`<dl>
      <dt>Version</dt>
      <dd>${model.version}</dd>
      <dt>Running for</dt>
      <dd>${formatDuration(nowMs - model.startedAtMs)}, since ${formatTime(model.startedAtMs)}</dd>
      <dt>Storage</dt>
      <dd>${model.storage.type}, <code>${model.storage.location}</code></dd>
    </dl>
    <h2>Databases</h2>
    <div class="scroll">
      <table>
        <thead>
          <tr>
            <th scope="col">Name</th>
            <th scope="col">State</th>
            <th scope="col" class="n">Used</th>
            <th scope="col" class="n">Map size</th>
            <th scope="col" class="n">Used of map</th>
            <th scope="col" class="n">Last transaction</th>
            <th scope="col" class="n">Readers</th>
            <th scope="col">Last stored</th>
          </tr>
        </thead>
        <tbody>
          ${model.databases.map((database) => overview(html, database, nowMs))}
        </tbody>
      </table>
    </div>
    ${model.databases.map((database) => details(html, database, nowMs))}`;
}

function overview(html: HtmlTag, database: DatabaseStatus, nowMs: number): Html {
  return html`<tr>
    <th scope="row"><bdi>${database.name}</bdi></th>
    <td class="state">
      ${
        database.problem === undefined
          ? database.phase
          : html`<span class="bad">${database.phase}: ${database.problem}</span>`
      }
    </td>
    ${space(html, database)}
    <td>
      ${
        database.lastStored === undefined
          ? html`<span class="soft">nothing yet</span>`
          : ago(html, database.lastStored.timestampMs, nowMs)
      }
    </td>
  </tr>`;
}

function space(html: HtmlTag, { name, stats }: DatabaseStatus): Html {
  if (stats === undefined) return html`<td colspan="5" class="soft">no figures</td>`;
  const { info, usedBytes } = stats;
  const fraction = usedFraction(stats);
  return html`<td class="n">${formatBytes(usedBytes)}</td>
    <td class="n">${formatBytes(info.mapSizeBytes)}</td>
    <td class="n">
      <meter
        value="${fraction.toFixed(4)}"
        high="0.8"
        optimum="0"
        aria-label="Used of the map of ${name}"
      ></meter>
      ${fraction >= 0.8 ? html`<span class="bad">${formatPercent(fraction)}</span>` : formatPercent(fraction)}
    </td>
    <td class="n">${info.lastTransactionId}</td>
    <td class="n">${info.readers} / ${info.maxReaders}</td>`;
}

function details(html: HtmlTag, database: DatabaseStatus, nowMs: number): Html {
  const { lastStored, stats } = database;
  return html`<section>
    <h2>Database <bdi>${database.name}</bdi></h2>
    <dl>
      <dt>Path</dt>
      <dd><code>${database.path}</code></dd>
      ${
        stats &&
        html`<dt>File size</dt>
          <dd>${formatBytes(stats.info.fileSizeBytes)}</dd>`
      }
      <dt>Last stored</dt>
      <dd>
        ${
          lastStored === undefined
            ? html`<span class="soft">nothing yet</span>`
            : html`<code>${lastStored.name}</code>, ${formatBytes(lastStored.sizeBytes)},
                ${age(html, lastStored.timestampMs, nowMs)}`
        }
      </dd>
    </dl>
    <h3>Instances</h3>
    ${
      database.instances.length === 0
        ? html`<p class="soft">No snapshot was seen yet.</p>`
        : html`<div class="scroll">
            <table>
              <thead>
                <tr>
                  <th scope="col">Instance</th>
                  <th scope="col">State</th>
                  <th scope="col">Newest snapshot seen</th>
                  <th scope="col">Last one merged</th>
                </tr>
              </thead>
              <tbody>
                ${database.instances.map((instance) => instanceRow(html, instance, nowMs))}
              </tbody>
            </table>
          </div>`
    }
    ${stats && dbiTable(html, stats)}
  </section>`;
}

function instanceRow(html: HtmlTag, instance: InstanceStatus, nowMs: number): Html {
  const { own, heldBack, newestSeen, lastMerged } = instance;
  const seenMs = newestSeen?.timestampMs ?? -Infinity;
  const behind = !own && seenMs > (lastMerged?.timestampMs ?? -Infinity);
  return html`<tr>
    <th scope="row"><bdi>${instance.instance}</bdi></th>
    <td>
      ${
        heldBack !== undefined
          ? html`<span class="warn">held back: ${heldBack}</span>`
          : own
            ? 'this instance'
            : behind
              ? html`<span class="warn">to be merged</span>`
              : html`<span class="good">merged</span>`
      }
    </td>
    <td>${snapshot(html, newestSeen, nowMs)}</td>
    <td>${snapshot(html, lastMerged, nowMs)}</td>
  </tr>`;
}

function snapshot(html: HtmlTag, seen: SeenSnapshot | undefined, nowMs: number): Html {
  if (seen === undefined) return html`<span class="soft">none</span>`;
  return html`${age(html, seen.timestampMs, nowMs)}<br /><code class="soft">${seen.name}</code>`;
}

function dbiTable(html: HtmlTag, stats: EnvironmentStats): Html {
  return html`<h3>DBIs</h3>
    <div class="scroll">
      <table>
        <thead>
          <tr>
            <th scope="col">DBI</th>
            <th scope="col" class="n">Entries</th>
            <th scope="col" class="n">Used</th>
            <th scope="col" class="n">Depth</th>
            <th scope="col" class="n">Branch pages</th>
            <th scope="col" class="n">Leaf pages</th>
            <th scope="col" class="n">Overflow pages</th>
            <th scope="col">Flags</th>
          </tr>
        </thead>
        <tbody>
          ${stats.dbis.map(
            (dbi) =>
              html`<tr>
                <th scope="row"><bdi>${dbi.name}</bdi></th>
                <td class="n">${dbi.entries}</td>
                <td class="n">${formatBytes(dbi.usedBytes)}</td>
                <td class="n">${dbi.depth}</td>
                <td class="n">${dbi.branchPages}</td>
                <td class="n">${dbi.leafPages}</td>
                <td class="n">${dbi.overflowPages}</td>
                <td>${formatFlags(dbi)}</td>
              </tr>`,
          )}
        </tbody>
      </table>
    </div>`;
}

function usedFraction({ info, usedBytes }: EnvironmentStats): number {
  return info.mapSizeBytes > 0 ? usedBytes / info.mapSizeBytes : 0;
}

function age(html: HtmlTag, timestampMs: number, nowMs: number): Html {
  return html`${ago(html, timestampMs, nowMs)} <span class="soft">(${formatTime(timestampMs)})</span>`;
}

function ago(html: HtmlTag, timestampMs: number, nowMs: number): Html {
  const agoMs = nowMs - timestampMs;
  const text = agoMs >= 0 ? `${formatDuration(agoMs)} ago` : `${formatDuration(-agoMs)} in the future`;
  return html`<time datetime="${formatTime(timestampMs).replace(' ', 'T').replace(' UTC', 'Z')}"
    >${text}</time
  >`;
}

/** `2026-11-22 04:36:10 UTC`; out of a Date's range: the number. */
function formatTime(timeMs: number): string {
  const date = new Date(timeMs);
  if (Number.isNaN(date.getTime())) return `${timeMs} ms`;
  return `${date.toISOString().slice(0, 19).replace('T', ' ')} UTC`;
}

/** The two largest units: `3 d 4 h`, `12 s`. */
export function formatDuration(durationMs: number): string {
  const units: readonly (readonly [string, number])[] = [
    ['d', 86_400],
    ['h', 3600],
    ['min', 60],
    ['s', 1],
  ];
  let rest = Math.floor(durationMs / 1000);
  const parts: string[] = [];
  for (const [unit, seconds] of units) {
    const count = Math.floor(rest / seconds);
    rest -= count * seconds;
    if (count > 0 || parts.length > 0) parts.push(`${count} ${unit}`);
  }
  return parts.slice(0, 2).join(' ') || '0 s';
}

/** Powers of 1024: `16.0 MiB`, `512 B`. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let at = 0;
  let value = bytes;
  while (value >= 1024 && at < units.length - 1) {
    value /= 1024;
    at += 1;
  }
  return `${at === 0 ? value : value.toFixed(1)} ${units[at]}`;
}

function formatPercent(fraction: number): string {
  return `${(fraction * 100).toFixed(1)} %`;
}

function formatFlags({ flags }: DbiStat): string {
  return DBI_FLAGS.filter(([bit]) => (flags & bit) !== 0)
    .map(([, name]) => name)
    .join(' ');
}
