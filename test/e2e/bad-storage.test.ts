/** A storage or spool that refuses, is full or vanishes: the LMDB side goes on, health tells, and it recovers by itself. */
import { chmod, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { cluster, DBI, objectName, spoolDirectories, spoolFiles } from './helpers.ts';
import { member, snapshot } from './snapshot-maker.ts';
import { canMount, tmpfs } from './tmpfs.ts';

/** A failure shows at once as a warning and half a second later as a failure. */
const quick = { interval: '1s', warn_duration: '0s', error_duration: '500ms' };
const settings = { health: { storage_list: quick, storage_load: quick, storage_store: quick } };

/** Text that does not compress. */
function noise(sizeBytes: number): string {
  let state = 1;
  return Array.from({ length: sizeBytes }, () => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return String.fromCharCode(33 + ((state >>> 16) % 94));
  }).join('');
}

describe('storage', () => {
  test('that vanishes: 503 until it is back, then everything is stored and merged', async () => {
    await using net = await cluster(2, settings);
    const [a, b] = [net.instance('a'), net.instance('b')];
    await a.app.put(DBI, 'before', '1');
    await net.start();
    await b.has('before', '1');
    const aside = join(net.directory, 'aside');
    await rename(net.storagePath, aside);
    await a.app.put(DBI, 'meanwhile', '2');
    const { failures, status } = await a.healthy(
      'unavailable',
      ({ failures: texts }) =>
        texts['main_storage_list_failed_duration'] !== undefined &&
        texts['main_storage_store_failed_duration'] !== undefined,
    );
    expect(status).toBe('Unavailable');
    expect(failures['main_storage_list_failed_duration']).toMatch(
      /^failed to list snapshots.* - last error: '.*no such/i,
    );
    expect(failures['main_storage_store_failed_duration']).toContain(net.storagePath);
    expect((await a.page('/storage')).status).toBe(500);
    expect((await a.page('/')).status).toBe(200);
    // The same every 100 ms is not said every 100 ms.
    expect(a.log().filter(({ msg }) => msg.startsWith('Listing the storage failed;'))).toHaveLength(1);

    await rename(aside, net.storagePath);
    await Promise.all([a.ok(), b.ok()]);
    await b.has('meanwhile', '2');
    expect((await a.page('/storage')).status).toBe(200);
    expect(a.daemon.stderr()).not.toMatch(/\n\s+at /);
  });

  test('that may not be written to: nothing is stored, others are merged, and it goes on once it may', async () => {
    await using net = await cluster(1, settings);
    const a = net.instance('a');
    await net.upload(
      objectName('z'),
      member(snapshot(DBI, [{ key: 'remote', value: 'r', timestampNano: 5n }])),
    );
    await a.app.put(DBI, 'local', 'l');
    await chmod(net.storagePath, 0o555);
    await a.start({ unprivileged: true });
    const { failures } = await a.healthy('unavailable', ({ httpStatus }) => httpStatus === 503);
    expect(Object.keys(failures)).toEqual(['main_storage_store_failed_duration']);
    expect(failures['main_storage_store_failed_duration']).toMatch(/permission denied/i);
    expect(failures['main_storage_store_failed_duration']).toContain(net.storagePath);
    await a.has('remote', 'r');
    expect(await a.metric('lightningstream_syncer_snapshots_store_failed_attempts_total')).toBeGreaterThan(0);

    await chmod(net.storagePath, 0o755);
    await a.ok();
    await a.logged('Stored snapshot');
    await a.stop();
  });

  test.skipIf(!canMount)(
    'that is full: nothing half-written, and it goes on once there is room',
    async () => {
      await using net = await cluster(1, settings);
      const a = net.instance('a');
      using _mount = tmpfs(net.storagePath, '1m');
      const filler = join(net.storagePath, 'filler');
      await writeFile(filler, Buffer.alloc(700_000));
      await net.start();
      await a.app.put(DBI, 'big', noise(600_000));
      const { failures } = await a.healthy('unavailable', ({ httpStatus }) => httpStatus === 503);
      expect(failures['main_storage_store_failed_duration']).toMatch(/no space left/i);
      expect(net.objects('a').filter((name) => name.endsWith('.pb.gz'))).toEqual([]);
      expect(net.objects().filter((name) => name.endsWith('.tmp')).length).toBeLessThanOrEqual(1);

      await rm(filler);
      await a.logged('Stored snapshot');
      await a.ok();
      await a.stop();
      expect(net.objects()).toHaveLength(1);
    },
  );

  test('that cannot be opened at the start: one line, exit code 1', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    await writeFile(join(net.directory, 'file'), '');
    const root = join(net.directory, 'file', 'below');
    const { code, stderr } = await a.run({ config: { storage: { options: { root_path: root } } } });
    expect(code).toBe(1);
    const lines = stderr
      .trim()
      .split('\n')
      .filter((line) => !line.startsWith('{'));
    expect(lines).toEqual([expect.stringContaining(root)]);
    expect(lines[0]).toMatch(/not a directory/i);
  });
});

describe('spool directory', () => {
  test.skipIf(!canMount)(
    'that is full: loading waits, storing does not, and loading goes on once there is room',
    async () => {
      await using net = await cluster(1, settings);
      const a = net.instance('a');
      using _mount = tmpfs(a.spoolPath, '1m');
      await net.start();
      const filler = join(a.spoolPath, 'filler');
      await writeFile(filler, Buffer.alloc(700_000));
      const value = noise(600_000);
      await net.upload(objectName('z'), member(snapshot(DBI, [{ key: 'big', value, timestampNano: 5n }])));
      const { failures } = await a.healthy('unavailable', ({ httpStatus }) => httpStatus === 503);
      expect(Object.keys(failures)).toEqual(['main_storage_load_failed_duration']);
      expect(failures['main_storage_load_failed_duration']).toMatch(/no space left/i);
      expect(failures['main_storage_load_failed_duration']).toContain(a.spoolPath);
      await a.app.put(DBI, 'local', 'l');
      await a.logged('Stored snapshot');

      await rm(filler);
      await a.has('big', value);
      await a.ok();
      expect(spoolFiles(a)).toEqual([]);
      await a.stop();
      expect(spoolDirectories(a)).toEqual([]);
    },
  );

  test('that may not be written to: one line that names the key, exit code 1', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    await chmod(a.spoolPath, 0o555);
    const { code, stderr } = await a.run({ unprivileged: true });
    expect(code).toBe(1);
    const lines = stderr
      .trim()
      .split('\n')
      .filter((line) => !line.startsWith('{'));
    expect(lines).toEqual([expect.stringMatching(/spool_dir: .*permission denied/i)]);
    expect(lines[0]).toContain(a.spoolPath);
  });
});
