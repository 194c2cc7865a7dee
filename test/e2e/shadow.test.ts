/** Applications that know nothing of headers, tables with duplicates among them. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { until } from '../helpers/process.ts';
import type { PlainChange } from '../helpers/testkit.ts';
import { cluster, type Instance, objectName } from './helpers.ts';

const DUPSORT = 0x04;
const INTEGERKEY = 0x08;

const SHADOW = { lmdbs: { main: { schema_tracks_changes: false, dupsort_hack: true } } };

/** Sorted duplicates of a key. */
const pair = (key: string, value: string): PlainChange => ({ dbi: 'idx', flags: DUPSORT, key, value });
const record = (key: string, value: string): PlainChange => ({ dbi: 'data', key, value });
/** A native integer, which these machines write with the lowest byte first. */
const numbered = (key: number, value: string): PlainChange => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(key);
  return { dbi: 'ids', flags: INTEGERKEY, key: bytes, value };
};
const gone = (change: PlainChange): PlainChange => ({ ...change, remove: true });

const content = (instance: Instance): Promise<Record<string, readonly string[]>> =>
  instance.app.plainDump({ encoding: 'hex' });

const hex = (...pairs: readonly (readonly [string | Buffer, string])[]): readonly string[] =>
  pairs.map(
    ([key, value]) => `${Buffer.from(key as string).toString('hex')} = ${Buffer.from(value).toString('hex')}`,
  );

/** Waits until the applications of all instances see exactly this. */
async function agree(
  instances: readonly Instance[],
  expected: Readonly<Record<string, readonly string[]>>,
): Promise<void> {
  const wanted = JSON.stringify(sorted(expected));
  for (const instance of instances) {
    let last = '';
    const isThere = async (): Promise<boolean> => {
      last = JSON.stringify(sorted(await content(instance)));
      return last === wanted;
    };
    try {
      await until(isThere, { what: `${instance.name} sees ${wanted}`, timeoutMs: 20_000 });
    } catch (error) {
      throw new Error(`${String(error)}; it sees ${last}`, { cause: error });
    }
  }
}

function sorted(dbis: Readonly<Record<string, readonly string[]>>): unknown {
  return Object.entries(dbis).sort(([a], [b]) => (a < b ? -1 : 1));
}

test('two applications see the same, and what either changes, adds or removes', async () => {
  await using net = await cluster(2, SHADOW);
  const [a, b] = [net.instance('a'), net.instance('b')];
  await a.app.plain(record('k', 'v'), pair('x', '1'), pair('x', '2'), pair('y', '1'), numbered(256, 'n'));
  await net.start();
  const ids = (value: string): readonly string[] => hex([Buffer.from([0, 1, 0, 0]), value]);
  await agree([a, b], { data: hex(['k', 'v']), ids: ids('n'), idx: hex(['x', '1'], ['x', '2'], ['y', '1']) });

  await b.app.plain(record('k', 'changed'), gone(pair('x', '1')), pair('x', '3'), numbered(256, 'm'));
  await agree([a, b], {
    data: hex(['k', 'changed']),
    ids: ids('m'),
    idx: hex(['x', '2'], ['x', '3'], ['y', '1']),
  });

  await a.app.plain(gone(record('k', '')), gone(pair('y', '1')), record('other', 'v'), pair('x', '1'));
  await agree([a, b], {
    data: hex(['other', 'v']),
    ids: ids('m'),
    idx: hex(['x', '1'], ['x', '2'], ['x', '3']),
  });

  for (const instance of [a, b]) await instance.ok();
  const { body } = await a.page('/');
  expect(body).toContain('_sync_shadow_idx');
});

test('changes while one daemon is down reach the others, and theirs reach it', async () => {
  await using net = await cluster(2, SHADOW);
  const [a, b] = [net.instance('a'), net.instance('b')];
  await a.app.plain(
    record('both', 'v'),
    record('ours', 'v'),
    record('stays', 'v'),
    pair('x', '1'),
    pair('x', '2'),
  );
  await net.start();
  await agree([b], {
    data: hex(['both', 'v'], ['ours', 'v'], ['stays', 'v']),
    idx: hex(['x', '1'], ['x', '2']),
  });

  await a.stop();
  await a.app.plain(record('added', 'v'), record('ours', 'changed'), pair('x', '3'), gone(pair('x', '1')));
  await b.app.plain(record('theirs', 'v'), record('both', 'changed'));
  await b.logged('Stored snapshot', ({ captured_changed }) => captured_changed === 1);
  await a.start();
  await agree([a, b], {
    data: hex(['added', 'v'], ['both', 'changed'], ['ours', 'changed'], ['stays', 'v'], ['theirs', 'v']),
    // What was removed while nobody looked may have been so for long: everybody who still has it wins. Here nobody
    // has it newer, so the removal holds.
    idx: hex(['x', '2'], ['x', '3']),
  });
});

test('daemons killed again and again, with writes all the time, end up equal', async () => {
  await using net = await cluster(2, SHADOW);
  const [a, b] = [net.instance('a'), net.instance('b')];
  await net.start();
  const text = async (instance: Instance): Promise<string> => JSON.stringify(sorted(await content(instance)));
  const victimOf = (round: number): Instance => (round % 2 === 0 ? a : b);
  for (let round = 0; round < 4; round++) {
    const victim = victimOf(round);
    const writing = Promise.all(
      [a, b].map(async ({ app, name }) => {
        for (let number = 0; number < 25; number++) {
          await app.plain(
            record(`${name}-${round}-${number}`, String(number)),
            pair(`${name}-${round}`, String(number).padStart(2, '0')),
          );
          // A removal that a daemon finds only when it starts counts as old, and is undone by whoever has the record.
          if (number % 5 === 4 && name !== victim.name)
            await app.plain(gone(record(`${name}-${round}-${number - 2}`, '')));
        }
      }),
    );
    await victim.kill();
    await writing;
    await victim.start();
    // So the next victim must know of all removals.
    await until(
      async () =>
        (await text(a)) === (await text(b)) && (await a.run({ args: ['verify', '--latest'] })).code === 0,
      { what: `round ${round} is over: the tables are equal, and their headers`, timeoutMs: 30_000 },
    );
  }
  const keys = ['a', 'b'].flatMap((name) =>
    [0, 1, 2, 3].flatMap((round) => Array.from({ length: 25 }, (_, number) => ({ name, round, number }))),
  );
  const order = (pairs: [string, string][]): [string, string][] =>
    pairs.sort(([a1, a2], [b1, b2]) => (a1 === b1 ? (a2 < b2 ? -1 : 1) : a1 < b1 ? -1 : 1));
  const kept = keys.filter(({ name, round, number }) => number % 5 !== 2 || name === victimOf(round).name);
  await agree([a, b], {
    data: hex(
      ...order(kept.map(({ name, round, number }) => [`${name}-${round}-${number}`, String(number)])),
    ),
    idx: hex(
      ...order(keys.map(({ name, round, number }) => [`${name}-${round}`, String(number).padStart(2, '0')])),
    ),
  });
  for (const instance of [a, b]) await instance.ok();
});

test('a quiet daemon takes no write lock: not to start, not to merge, not to store', async () => {
  await using net = await cluster(2, SHADOW);
  const [a, b] = [net.instance('a'), net.instance('b')];
  await a.app.plain(record('k', 'v'), pair('x', '1'), pair('x', '2'), numbered(1, 'n'));
  await net.start();
  await agree([b], await content(a));
  await Promise.all([a.stop(), b.stop()]);

  // Held until the end of this block: whoever wants it waits for ever.
  const shadows = await b.app.plainDump({ shadows: true, encoding: 'hex' });
  await b.app.call({ op: 'lock' });
  await b.start();
  await b.logged('Loaded remote update', ({ snapshot_instance }) => snapshot_instance === 'a');
  await b.logged('Stored snapshot');
  await b.ok();
  const name = objectName('a');
  const [stored = ''] = net.objects('a').slice(-1);
  await net.upload(name, readFileSync(join(net.storagePath, stored)));
  const line = await b.logged('Loaded remote update', ({ timestamp }) => name.includes(String(timestamp)));
  expect(line).toMatchObject({ added: 0, updated: 0, time_write_lock: '0s' });
  await b.stop();
  await b.app.call({ op: 'unlock' });
  expect(await b.app.plainDump({ shadows: true, encoding: 'hex' })).toEqual(shadows);
});

test('another program of the same storage that writes headers sees plain values, and the other way round', async () => {
  await using net = await cluster(2);
  const [a, b] = [net.instance('a'), net.instance('b')];
  await a.app.put('data', 'native', 'v');
  await b.app.plain(record('plain', 'v'));
  await a.start();
  await b.start({ config: SHADOW });
  await agree([b], { data: hex(['native', 'v'], ['plain', 'v']) });
  await until(async () => (await a.app.get('data', 'plain'))?.value === 'v', { what: 'a has plain' });
  await b.app.plain(gone(record('native', '')));
  await until(async () => (await a.app.get('data', 'native'))?.deleted === true, {
    what: 'a has the deletion',
  });
});

test('the wrong mode is told in one line, and harms nobody', async () => {
  await using net = await cluster(2);
  const [a, b] = [net.instance('a'), net.instance('b')];
  await a.app.put('data', 'k', 'v');
  const { code, stderr } = await a.run({ config: SHADOW, args: ['sync', '--only-once'] });
  expect(code).toBe(1);
  expect(a.log(stderr).filter(({ level }) => level !== 'info' && level !== 'debug')).toEqual([
    expect.objectContaining({
      level: 'error',
      error: expect.stringMatching(
        /^lmdbs\.main\.schema_tracks_changes is false, but the values in DBI data begin with /,
      ) as string,
    }),
  ]);
  expect(net.objects()).toEqual([]);

  await b.app.plain(record('k', 'v'));
  await b.start();
  await b.healthy('native mode is refused', ({ httpStatus, failures }) =>
    /schema_tracks_changes is true.*\(WRONG_MODE\)$/.test(
      httpStatus === 503 ? (failures['main_local_fault'] ?? '') : '',
    ),
  );
  await b.stop();
  expect(net.objects()).toEqual([]);
  expect(Object.keys(await content(b))).toEqual(['data']);
});
