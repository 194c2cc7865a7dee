// Merging as the reference merges: the same LMDB afterwards, byte for byte, read with another LMDB implementation.
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { loadNative } from '../../src/native/index.ts';
import { deletedCutoffNano } from '../../src/sync/syncer.ts';
import { readLmdb } from '../helpers/lmdb.ts';
import { run } from '../helpers/process.ts';
import { caseRunner, comparable, expectWrittenByUs, prepare, readCases } from './cases.ts';

const all = readCases('merge-native');
/** Its configuration turns the sweeper on. */
const needsSweeper = 'sweeper-load-cutoff';

test('all cases are there', () => {
  expect(all.filter(({ native }) => native)).toHaveLength(29);
});

describe.concurrent('receive --only-once', () => {
  const runCase = caseRunner();
  const cases = all.filter(({ name }) => name !== needsSweeper);
  test.each(cases.map((golden) => [golden.name, golden.description, golden] as const))(
    '%s: %s',
    async (...[, , golden]) => {
      const { expected } = golden;
      const { code, complaints, before, after, newObjects } = await runCase(golden);
      expect(comparable(after, expected.dbis)).toEqual(expected.dbis);
      expect({ code, newObjects: newObjects.size }).toEqual({ code: expected.exit, newObjects: 0 });

      // A created DBI is worth a warning, and there is nothing else to say about a good snapshot.
      const created = Object.keys(expected.dbis).filter((name) => before?.dbis[name] === undefined);
      expect(complaints.map(({ level, dbi }) => `${level} ${String(dbi)}`).sort()).toEqual(
        created.map((name) => `warning ${name}`).sort(),
      );

      const written = expectWrittenByUs({ before, after });
      if (expected.nothing_written) {
        expect({ written, lastTxnId: after.lastTxnId }).toEqual({ written: 0, lastTxnId: before?.lastTxnId });
      } else {
        expect(written + created.length).toBeGreaterThan(0);
        expect(after.lastTxnId).toBeGreaterThan(before?.lastTxnId ?? 0);
      }
    },
  );
});

describe(needsSweeper, () => {
  const golden = all.find(({ name }) => name === needsSweeper);
  if (golden === undefined) throw new Error(`${needsSweeper} is missing`);

  test('what the sweeper removes does not come back', async () => {
    await using place = await prepare(golden);
    const before = await readLmdb(place.lmdbPath, { noSubdir: true });
    const env = loadNative().openEnvironment(place.lmdbPath, {
      noSubdir: true,
      create: true,
      dirMask: 0o775,
      fileMask: 0o664,
      mapSizeBytes: 8 << 20,
      maxDbs: 64,
    });
    // The retention of the case's configuration, the margin left to its default.
    const sweeper = {
      enabled: true,
      retentionDays: 370,
      retentionLoadCutoffDurationMs: 0,
      intervalMs: 0,
      firstIntervalMs: 0,
      lockDurationMs: 0,
      releaseDurationMs: 0,
    };
    for (const name of readdirSync(place.storagePath).sort()) {
      await env.merge({
        spoolPath: join(place.storagePath, name),
        mode: 'native',
        dupsortHack: false,
        captureNano: 0n,
        deletedCutoffNano: deletedCutoffNano(sweeper, BigInt(Date.now()) * 1_000_000n),
        createFlags: {},
        headerExtraPaddingBlock: false,
      });
    }
    await env.close();
    const after = await readLmdb(place.lmdbPath, { noSubdir: true });
    expect(comparable(after, golden.expected.dbis)).toEqual(golden.expected.dbis);
    expect(expectWrittenByUs({ before, after })).toBeGreaterThan(0);
  });

  test('the program does not pretend to have a sweeper', async () => {
    await using place = await prepare(golden);
    const { code, stdout, stderr } = await run({
      args: ['-c', golden.configPath, 'receive', '--only-once'],
      env: place.env,
    });
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toMatch(/^lightningstream: \S+: sweeper\.enabled: [^\n]+\n$/);
    expect(existsSync(`${place.lmdbPath}-lock`)).toBe(false);
  });
});
