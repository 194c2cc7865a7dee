// Every rule of cleaning, with a clock of our own; the storage is real, in memory.
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { parseSnapshotName, type SnapshotName } from '../../src/snapshot/name.ts';
import { type Storage, updateMarkerName } from '../../src/storage/storage.ts';
import { UpdateMarkerStorage } from '../../src/storage/update-marker.ts';
import { Cleaner, type CleanerOptions } from '../../src/sync/cleaner.ts';
import type { Clock } from '../../src/sync/wait.ts';
import { at, config, name, type Surroundings, surroundings } from './sync-helpers.ts';

const MINUTE = 60;
const DAY = 24 * 60 * MINUTE;
/** As in the defaults; the interval itself does not matter here. */
const KEEP = 10 * MINUTE;
const GONE_AFTER = 7 * DAY;
const SETTINGS =
  'storage: {type: memory, cleanup: {enabled: true, interval: 5m, must_keep_interval: 10m, remove_old_instances_interval: 168h}}';

const { signal } = new AbortController();
let around: Surroundings;
/** Seconds since {@link at}(0); moved by the tests. */
let now: number;
/** Of each instance what a receiver would have merged: the newest of what was put. */
let merged: Map<string, SnapshotName>;
const clock: Clock = { monotonicMs: () => (now + 5) * 1000, wallNano: () => at(now) };

beforeEach(async () => {
  around = await surroundings();
  // Long after the snapshots that the tests make.
  now = 100 * DAY;
  merged = new Map();
});

afterEach(async () => {
  vi.useRealTimers();
  await around[Symbol.asyncDispose]();
});

function cleaner(options: Partial<CleanerOptions> = {}, settings = SETTINGS): Cleaner {
  return new Cleaner({
    ...around,
    database: 'main',
    instance: 'self',
    config: config(settings),
    logger: around.log.logger,
    clock,
    merged: () => merged,
    ...options,
  });
}

/** Puts what cannot be merged, or is not merged yet. */
async function putOnly(...objects: string[]): Promise<void> {
  for (const object of objects) await around.put(object, 'x');
}

async function put(...objects: string[]): Promise<void> {
  await putOnly(...objects);
  for (const object of objects) {
    const parts = parseSnapshotName(object);
    if (parts?.database !== 'main') continue;
    const known = merged.get(parts.instance);
    if (known === undefined || known.name < object) merged.set(parts.instance, parts);
  }
}

async function left(): Promise<string[]> {
  return (await around.objects.list('', { signal })).map((object) => object.name);
}

/** Cleans `seconds` later; what is left. */
async function after(seconds: number, cleaning: Cleaner): Promise<string[]> {
  now += seconds;
  await cleaning.clean(signal);
  return left();
}

/** The storage with another way to delete. */
function deletingBy(remove: Storage['delete']): Storage {
  const { storage } = around;
  return {
    type: storage.type,
    location: storage.location,
    list: (prefix, options) => storage.list(prefix, options),
    load: (object, toPath, options) => storage.load(object, toPath, options),
    store: (object, fromPath, options) => storage.store(object, fromPath, options),
    delete: remove,
    close: () => storage.close(),
  };
}

const parsed = (object: string) => parseSnapshotName(object)!;

describe('older snapshots of an instance', () => {
  it('go once must_keep_interval has passed since they were first seen; the newest stays', async () => {
    const all = [name('a', 1), name('a', 2), name('a', 3), name('b', 1), name('b', 2)];
    await put(...all);
    const cleaning = cleaner();
    expect(await after(0, cleaning)).toEqual(all);
    expect(await after(KEEP, cleaning)).toEqual(all);
    expect(await after(1, cleaning)).toEqual([name('a', 3), name('b', 2)]);
    expect(await around.metric('lightningstream_cleaner_list_calls_total')).toBe(3);
    expect(
      await around.metric('lightningstream_cleaner_delete_total{lmdb="main",reason="newer snapshot"}'),
    ).toBe(3);
    expect(around.log.text()).toContain(
      'msg="Cleaned the storage" component=cleaner failed=0 removed=3 total=5',
    );
  });

  it('are counted from when they were first seen, whatever their name says', async () => {
    await put(name('a', 10));
    const cleaning = cleaner();
    await after(0, cleaning);
    // Brought by a slow replication of the storage: old by name, and perhaps being fetched.
    await put(name('a', 5));
    expect(await after(KEEP + 1, cleaning)).toEqual([name('a', 5), name('a', 10)]);
    expect(await after(KEEP, cleaning)).toEqual([name('a', 5), name('a', 10)]);
    expect(await after(1, cleaning)).toEqual([name('a', 10)]);
  });

  it('are new again after a restart', async () => {
    await put(name('a', 1), name('a', 2));
    await after(0, cleaner());
    const restarted = cleaner();
    expect(await after(KEEP + 1, restarted)).toEqual([name('a', 1), name('a', 2)]);
    expect(await after(KEEP + 1, restarted)).toEqual([name('a', 2)]);
  });

  it('are new again when they were away', async () => {
    await put(name('a', 1), name('a', 2));
    const cleaning = cleaner();
    await after(0, cleaning);
    await around.objects.delete(name('a', 1), { signal });
    await after(KEEP, cleaning);
    await put(name('a', 1));
    expect(await after(1, cleaning)).toEqual([name('a', 1), name('a', 2)]);
  });

  it('stay for one more cleaning when a newer one has just appeared', async () => {
    await put(name('a', 1));
    const cleaning = cleaner();
    await after(0, cleaning);
    await after(KEEP + 1, cleaning);
    await put(name('a', 2));
    expect(await after(1, cleaning)).toEqual([name('a', 1), name('a', 2)]);
    // Now it is known to everybody who lists, though itself it is younger than must_keep_interval.
    expect(await after(1, cleaning)).toEqual([name('a', 2)]);
  });

  it('never go because an even older one appears', async () => {
    await put(name('a', 10));
    const cleaning = cleaner();
    await after(0, cleaning);
    await after(KEEP + 1, cleaning);
    await put(name('a', 5));
    await after(1, cleaning);
    expect(await after(1, cleaning)).toContain(name('a', 10));
  });

  it('stay when the newest cannot be used', async () => {
    await put(name('a', 1), name('a', 2));
    await putOnly(name('a', 3));
    const cleaning = cleaner();
    await after(0, cleaning);
    expect(await after(KEEP + 1, cleaning)).toEqual([name('a', 2), name('a', 3)]);
    await put(name('a', 4));
    await after(1, cleaning);
    expect(await after(KEEP + 1, cleaning)).toEqual([name('a', 4)]);
  });

  it('stay until a newer one is merged, however long that takes', async () => {
    await put(name('a', 1));
    await putOnly(name('a', 2));
    const cleaning = cleaner();
    await after(0, cleaning);
    expect(await after(DAY, cleaning)).toEqual([name('a', 1), name('a', 2)]);
    merged.set('a', parsed(name('a', 2)));
    expect(await after(1, cleaning)).toEqual([name('a', 2)]);
  });

  it('go, too, where there is a newer one each time', async () => {
    await put(name('a', 1));
    const cleaning = cleaner();
    await after(0, cleaning);
    await put(name('a', 2));
    expect(await after(KEEP + 1, cleaning)).toEqual([name('a', 1), name('a', 2)]);
    await put(name('a', 3));
    expect(await after(KEEP + 1, cleaning)).toEqual([name('a', 2), name('a', 3)]);
    await put(name('a', 4));
    expect(await after(KEEP + 1, cleaning)).toEqual([name('a', 3), name('a', 4)]);
  });

  it('are removed for our own instance, too', async () => {
    await putOnly(name('self', 1), name('self', 2));
    const cleaning = cleaner();
    cleaning.noteStored(parsed(name('self', 2)), new Map());
    await after(0, cleaning);
    expect(await after(KEEP + 1, cleaning)).toEqual([name('self', 2)]);
  });
});

describe('names', () => {
  it('that are not snapshots of this database are never touched', async () => {
    const foreign = [
      'main',
      'main.db',
      'main__',
      'main__a__20200101-000000-000000000__GX.pb.gz.tmp',
      'main__a__20200101-000000-000000000__GX.diff.gz',
      'main__a__20200101-000000__GX.pb.gz',
      'main__a__20200230-000000-000000000__GX.pb.gz',
      'main__a.pb.gz',
      'main__notes.txt',
      'mainz__a__20200101-000000-000000000__GX.pb.gz',
      'other__a__20200101-000000-000000000__GX.pb.gz',
      'other__a__20200102-000000-000000000__GX.pb.gz',
      'prefix-main__a__20200101-000000-000000000__GX.pb.gz',
    ];
    await put(...foreign, name('a', 1), name('a', 2));
    const cleaning = cleaner();
    cleaning.noteStored(parsed(name('self', 3)), new Map([['a', parsed(name('a', 2))]]));
    await after(0, cleaning);
    expect(await after(GONE_AFTER, cleaning)).toEqual([...foreign, name('a', 2)].sort());
  });

  it('of all generations and with extras count', async () => {
    const odd = name('a', 1).replace('__GX', '__G7__Xtra');
    await put(odd, name('a', 2));
    const cleaning = cleaner();
    await after(0, cleaning);
    expect(await after(KEEP + 1, cleaning)).toEqual([name('a', 2)]);
  });

  it('of one time all stay', async () => {
    const same = [name('a', 2).replace('__GX', '__G1'), name('a', 2)];
    await put(name('a', 1), ...same);
    const cleaning = cleaner();
    await after(0, cleaning);
    expect(await after(KEEP + 1, cleaning)).toEqual(same);
  });
});

describe('the last snapshot of an instance', () => {
  const last = name('gone', 0);
  const ours = name('self', 50);
  /** Seconds since {@link at}(0) when `last` is just old enough. */
  const due = GONE_AFTER;

  /** Everything that its removal needs, except what `change` takes away. */
  async function removed(
    change: { now?: number; holds?: string; stored?: boolean; ours?: string; instance?: string } = {},
  ): Promise<boolean> {
    await put(last, change.ours ?? ours);
    now = (change.now ?? due + 1) - KEEP - 1;
    const cleaning = cleaner(change.instance === undefined ? {} : { instance: change.instance });
    await cleaning.clean(signal);
    if (change.stored ?? true)
      cleaning.noteStored(
        parsed(change.instance === undefined ? ours : last),
        new Map([['gone', parsed(change.holds ?? last)]]),
      );
    return !(await after(KEEP + 1, cleaning)).includes(last);
  }

  it('goes when it is old enough, and a snapshot of ours that is stored holds it', async () => {
    expect(await removed()).toBe(true);
    expect(
      await around.metric('lightningstream_cleaner_delete_total{lmdb="main",reason="stale instance"}'),
    ).toBe(1);
    expect(around.log.text()).toMatch(
      /Removed the last snapshot of an instance that is gone.*snapshot_instance=gone/,
    );
  });

  it.each([
    ['it is not older than remove_old_instances_interval', { now: due }],
    ['we have not stored anything since it was merged', { stored: false }],
    ['only an older one was merged', { holds: name('gone', -1) }],
    ['ours is no longer in the storage', { ours: name('other', 50) }],
    ['only an older one of ours is in the storage', { ours: name('self', 49) }],
    ['it is our own', { instance: 'gone' }],
  ])('stays when %s', async (_, change) => {
    expect(await removed(change)).toBe(false);
  });

  it('goes as well when a newer one of it was merged', async () => {
    expect(await removed({ holds: name('gone', 1) })).toBe(true);
  });

  it('stays until must_keep_interval has passed', async () => {
    await put(last, ours);
    now = due + DAY;
    const cleaning = cleaner();
    cleaning.noteStored(parsed(ours), new Map([['gone', parsed(last)]]));
    await cleaning.clean(signal);
    expect(await after(KEEP, cleaning)).toContain(last);
    expect(await after(1, cleaning)).not.toContain(last);
  });

  it('stays when the instance has just come back', async () => {
    await put(last, ours);
    now = due + DAY;
    const cleaning = cleaner();
    cleaning.noteStored(parsed(ours), new Map([['gone', parsed(last)]]));
    await cleaning.clean(signal);
    const back = name('gone', due + DAY);
    await put(back);
    expect(await after(KEEP + 1, cleaning)).toEqual([last, back, ours].sort());
  });

  it('stays with one that cannot be used', async () => {
    const broken = name('gone', 1);
    await put(last, ours);
    await putOnly(broken);
    now = due + DAY;
    const cleaning = cleaner();
    cleaning.noteStored(parsed(ours), new Map([['gone', parsed(last)]]));
    await cleaning.clean(signal);
    expect(await after(KEEP + 1, cleaning)).toEqual([last, broken, ours].sort());
  });
});

describe('trouble', () => {
  const conditions = () => Object.keys(around.health.report().warnings);

  it('with a listing is counted and logged once, and touches nothing', async () => {
    await put(name('a', 1), name('a', 2));
    const cleaning = cleaner();
    await after(0, cleaning);
    around.storage.failure.list = new Error('the disk is gone');
    await after(KEEP + 1, cleaning);
    expect(await after(1, cleaning)).toHaveLength(2);
    expect(await around.metric('lightningstream_cleaner_list_failed_total')).toBe(2);
    expect(around.log.text().match(/Listing the storage for cleaning failed/g)).toHaveLength(1);
    around.storage.failure.list = undefined;
    expect(await after(1, cleaning)).toEqual([name('a', 2)]);
    expect(around.log.text()).toContain('Listing the storage for cleaning works again');
  });

  it('with one object keeps nothing else from being removed', async () => {
    const all = [1, 2, 3, 4].map((second) => name('a', second));
    await put(...all);
    const locked = new Set([name('a', 1), name('a', 2)]);
    const storage = deletingBy((object, options) =>
      locked.has(object)
        ? Promise.reject(new Error(`${object} is locked`))
        : around.objects.delete(object, options),
    );
    const cleaning = cleaner({ storage });
    await after(0, cleaning);
    expect(await after(KEEP + 1, cleaning)).toEqual([name('a', 1), name('a', 2), name('a', 4)]);
    await after(1, cleaning);
    expect(await around.metric('lightningstream_cleaner_delete_failed_total')).toBe(4);
    expect(around.log.text().match(/A snapshot cannot be removed/g)).toHaveLength(1);
    expect(around.health.report().warnings['main_cleanup_failed']).toBe(
      `old snapshot ${name('a', 1)} cannot be removed: ${name('a', 1)} is locked (and 1 more)`,
    );
    locked.clear();
    expect(await after(1, cleaning)).toEqual([name('a', 4)]);
    expect(conditions()).toEqual([]);
    expect(around.log.text()).toContain('Removing snapshots works again');
  });

  it('an end while a removal hangs ends it', async () => {
    await put(name('a', 1), name('a', 2));
    const hanging = Promise.withResolvers<void>();
    const storage = deletingBy((_, options) => {
      hanging.resolve();
      return new Promise((_resolve, reject) =>
        options.signal.addEventListener('abort', () => reject(options.signal.reason as Error)),
      );
    });
    const cleaning = cleaner({ storage });
    await after(0, cleaning);
    now += KEEP + 1;
    const end = new AbortController();
    const cleaned = cleaning.clean(end.signal);
    await hanging.promise;
    end.abort(new Error('the end'));
    await expect(cleaned).rejects.toThrow('the end');
    expect(await around.metric('lightningstream_cleaner_delete_failed_total')).toBe(0);
  });
});

describe('run', () => {
  it.each([
    [0, 4 * MINUTE],
    [0.5, 5 * MINUTE],
    [1, 6 * MINUTE],
  ])('cleans at once and then every interval ± 20 % (%d)', async (random, seconds) => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const end = new AbortController();
    const lists = () => around.storage.calls.length;
    const running = cleaner({ random: () => random }).run(end.signal);
    // Only timers stand still.
    while (vi.getTimerCount() === 0) await new Promise(setImmediate);
    expect(lists()).toBe(1);
    vi.advanceTimersByTime(seconds * 1000 - 1);
    expect(vi.getTimerCount()).toBe(1);
    vi.advanceTimersByTime(1);
    expect(vi.getTimerCount()).toBe(0);
    vi.useRealTimers();
    await vi.waitFor(() => expect(lists()).toBe(2));
    end.abort(new Error('the end'));
    await expect(running).rejects.toThrow('the end');
  });
});

it('each removal is announced where the storage has an update marker', async () => {
  const storage = new UpdateMarkerStorage(around.objects, {
    globalPrefix: '',
    forceListIntervalMs: 3_600_000,
    logger: around.log.logger,
  });
  await put(name('a', 1), name('a', 2));
  const cleaning = cleaner({ storage });
  await after(0, cleaning);
  expect(await around.objects.readSmall(updateMarkerName, { signal })).toBeUndefined();
  expect(await after(KEEP + 1, cleaning)).toEqual([name('a', 2)]);
  expect(await around.objects.readSmall(updateMarkerName, { signal })).toMatch(
    new RegExp(`^${name('a', 1)}::\\d+:true$`),
  );
});
