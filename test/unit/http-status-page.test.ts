import { describe, expect, test } from 'vitest';
import { formatBytes, formatDuration, renderStatusPage } from '../../src/http/status-page.ts';
import type { DatabaseStatus, StatusModel } from '../../src/http/status.ts';
import { createHealth } from '../../src/observability/health.ts';

const NOW = Date.parse('2026-11-22T04:36:10Z');

function database(overrides: Partial<DatabaseStatus> = {}): DatabaseStatus {
  return {
    name: 'main',
    path: '/var/lib/x/main.mdb',
    phase: 'waiting',
    problem: undefined,
    stats: {
      info: {
        mapSizeBytes: 16 << 20,
        pageSizeBytes: 4096,
        lastPage: 20,
        lastTransactionId: 18446744073709551615n,
        maxReaders: 126,
        readers: 3,
        fileSizeBytes: 86016,
      },
      usedBytes: 14 << 20,
      dbis: [
        {
          name: 'records',
          flags: 0x04 | 0x08,
          depth: 2,
          branchPages: 1,
          leafPages: 11,
          overflowPages: 7,
          entries: 336,
          usedBytes: 49152,
        },
      ],
    },
    lastStored: { name: 'main__one__x__GX.pb.gz', timestampMs: NOW - 90_000, sizeBytes: 1010 },
    instances: [],
    ...overrides,
  };
}

function render(model: Partial<StatusModel> = {}, health = createHealth(() => NOW)): string {
  return renderStatusPage({
    model: {
      version: '1.2.3',
      instance: 'one',
      startedAtMs: NOW - 3_700_000,
      storage: { type: 'fs', location: '/srv/snapshots' },
      databases: [database()],
      ...model,
    },
    health: health.report(),
    nowMs: NOW,
    mask: (text) => text,
  });
}

/** What a reader sees, in one line. */
function visible(page: string): string {
  return page
    .replace(/<style>[^]*<\/style>/, '')
    .replace(/<[^>]*>/g, ' ')
    .replace(/\s+/g, ' ');
}

test('shows what an operator asks for', () => {
  const text = visible(
    render({
      databases: [
        database({
          instances: [
            { instance: 'one', own: true, newestSeen: undefined, lastMerged: undefined },
            {
              instance: 'two',
              own: false,
              newestSeen: { name: 'main__two__2__GX.pb.gz', timestampMs: NOW - 5000 },
              lastMerged: { name: 'main__two__1__GX.pb.gz', timestampMs: NOW - 7_300_000 },
            },
            {
              instance: 'three',
              own: false,
              newestSeen: { name: 'main__three__1__GX.pb.gz', timestampMs: NOW },
              lastMerged: { name: 'main__three__1__GX.pb.gz', timestampMs: NOW },
            },
          ],
        }),
      ],
    }),
  );
  expect(text).toContain('Version 1.2.3 Running for 1 h 1 min, since 2026-11-22 03:34:30 UTC');
  expect(text).toContain('fs, /srv/snapshots');
  // used, map size, used of map, last transaction, readers, last stored
  expect(text).toContain('main waiting 14.0 MiB 16.0 MiB 87.5 % 18446744073709551615 3 / 126 1 min 30 s ago');
  expect(text).toContain('/var/lib/x/main.mdb');
  expect(text).toContain('main__one__x__GX.pb.gz , 1010 B');
  expect(text).toContain('one this instance none none');
  expect(text).toMatch(
    /two to be merged 5 s ago \(2026-11-22 04:36:05 UTC\) main__two__2__GX.pb.gz 2 h 1 min ago/,
  );
  expect(text).toContain('three merged 0 s ago');
  // entries, used, depth, branch, leaf, overflow, flags
  expect(text).toContain('records 336 48.0 KiB 2 1 11 7 DUPSORT INTEGERKEY');
});

test('failures come before everything else', () => {
  const health = createHealth(() => NOW);
  health.condition('main_duplicate').set('failure', 'another instance uses this name');
  health.condition('main_held').set('warning', 'held back');
  const page = render({}, health);
  expect(page).toMatch(/<title>Unavailable: Lightning Stream one<\/title>/);
  const at = (text: string): number => visible(page).lastIndexOf(text);
  expect(at('another instance uses this name')).toBeGreaterThan(0);
  expect(at('held back')).toBeGreaterThan(at('another instance uses this name'));
  expect(at('Running for')).toBeGreaterThan(at('held back'));
});

test('a database without figures says why', () => {
  const text = visible(
    render({
      databases: [
        database({ stats: undefined, phase: 'stopped', problem: 'map is full', lastStored: undefined }),
      ],
    }),
  );
  expect(text).toContain('main stopped: map is full no figures nothing yet');
});

describe('hostile names', () => {
  const hostile = `<script>alert(1)</script>"'&amp;</style><!--\u202e\u0000\u001b`;

  test('are text wherever they stand', () => {
    const health = createHealth(() => NOW);
    health.condition(hostile).set('failure', hostile);
    health.condition(`${hostile}2`).set('warning', hostile);
    const base = database();
    const page = render(
      {
        version: hostile,
        instance: hostile,
        storage: { type: hostile, location: hostile },
        databases: [
          database({
            name: hostile,
            path: hostile,
            phase: hostile,
            problem: hostile,
            stats: base.stats && {
              ...base.stats,
              dbis: base.stats.dbis.map((dbi) => ({ ...dbi, name: hostile })),
            },
            lastStored: { name: hostile, timestampMs: NOW, sizeBytes: 1 },
            instances: [
              {
                instance: hostile,
                own: false,
                newestSeen: { name: hostile, timestampMs: NOW },
                lastMerged: { name: hostile, timestampMs: NOW },
              },
            ],
          }),
        ],
      },
      health,
    );
    const plain = render();
    // Not one tag, comment or attribute more than without them, but for the rows that are there.
    expect(page).not.toMatch(/<script|<!--|alert\(1\)<\/script/);
    expect(page.match(/<\/style>/g)).toHaveLength(1);
    expect(page).toContain('&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;amp;');
    // oxlint-disable-next-line no-control-regex -- control characters are what must not be there
    expect(page).not.toMatch(/[\u0000-\u0008\u000e-\u001f\u202e]/);
    const attributes = (text: string): string[] => [
      ...new Set([...text.matchAll(/ ([a-z-]+)="/g)].map(([, name = '']) => name)),
    ];
    expect(attributes(page).filter((name) => !attributes(plain).includes(name))).toEqual([]);
    // Each place where one stands: 2 conditions with name and text, head (title and heading) and version, storage 2, and those of the database.
    expect(page.match(/alert\(1\)/g)?.length).toBeGreaterThanOrEqual(18);
  });

  test('times beyond all calendars do not break the page', () => {
    const far = { name: 'x', timestampMs: 1e300 };
    expect(
      render({
        databases: [
          database({ instances: [{ instance: 'two', own: false, newestSeen: far, lastMerged: far }] }),
        ],
      }),
    ).toContain('1e+300 ms');
  });
});

test.each([
  [0, '0 s'],
  [999, '0 s'],
  [61_000, '1 min 1 s'],
  [3_600_000, '1 h 0 min'],
  [26 * 3_600_000, '1 d 2 h'],
])('%d ms is %s', (ms, text) => {
  expect(formatDuration(ms)).toBe(text);
});

test.each([
  [0, '0 B'],
  [1023, '1023 B'],
  [16 << 20, '16.0 MiB'],
  [1.5 * 2 ** 40, '1.5 TiB'],
])('%d bytes are %s', (bytes, text) => {
  expect(formatBytes(bytes)).toBe(text);
});
