/** The single binary with the memory and the processor time that the container stack and the example of the systemd unit give it. */
import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { controlGroup, missingControlGroups, type GroupUsage } from '../helpers/cgroup.ts';
import { freePort, repositoryRoot, run, start, tempDir, until, type TempDir } from '../helpers/process.ts';
import { startMinio, type S3Account } from '../helpers/s3-server.ts';
import { Testkit } from '../helpers/testkit.ts';
import { missingTool } from '../helpers/tools.ts';

const binary = join(repositoryRoot, 'dist', 'binary', 'lightningstream');
const LIMITS = { memoryBytes: 128 * 1024 ** 2, cpuShare: 0.25 };
const RECORDS = Number(process.env['LIMIT_RECORDS'] || 100_000);
/** With a quarter of a core. */
const patient = { timeoutMs: 110_000, intervalMs: 250 };

const missing =
  missingControlGroups() ??
  missingTool('minio') ??
  (existsSync(binary) ? undefined : 'there is no binary: run make binary');
const title = '128 MB and a quarter of a core';

describe.skipIf(missing !== undefined)(missing === undefined ? title : `${title} [${missing}]`, () => {
  test(
    `are enough to sync ${RECORDS} records both ways through MinIO, the page cache counted`,
    { timeout: 300_000 },
    async () => {
      await using dir = await tempDir('lightningstream-limit-');
      await using s3 = await startMinio();
      await using kitA = new Testkit(dir.join('a.mdb'), { noSubdir: true });
      await using kitB = new Testkit(dir.join('b.mdb'), { noSubdir: true });
      await kitA.fill(RECORDS);
      await using a = await limitedDaemon(dir, 'a', s3);
      await using b = await limitedDaemon(dir, 'b', s3);

      const whileBothRun = (work: Promise<unknown>): Promise<unknown> =>
        Promise.race([work, a.death, b.death]);

      const filled = await kitA.digest();
      await whileBothRun(
        until(async () => (await kitB.digest()) === filled, { ...patient, what: 'B has all records' }),
      );
      // All of them newer, so that A has to write all, too.
      await kitB.touch(1);
      const touched = await kitB.digest();
      expect(touched).not.toBe(filled);
      await whileBothRun(
        until(async () => (await kitA.digest()) === touched, { ...patient, what: 'A has all changes' }),
      );

      for (const { name, daemon, group, peakAnonymousBytes, isHealthy } of [a, b]) {
        await until(isHealthy, { ...patient, what: `${name} is healthy` });
        const usage = await group.usage();
        process.stdout.write(`${name}: ${described(usage, peakAnonymousBytes())}\n`);
        expect(usage.killed).toBe(0);
        // It was in the group: the kernel has counted its memory, and its files.
        expect(usage.anonymousBytes).toBeGreaterThan(0);
        expect(usage.cacheBytes).toBeGreaterThan(0);
        expect((await daemon.stop()).code).toBe(0);
      }
    },
  );
});

/** `sync` in a control group of its own. */
async function limitedDaemon(dir: TempDir, name: string, s3: S3Account) {
  await using stack = new AsyncDisposableStack();
  const port = await freePort();
  const database = dir.join(`${name}.mdb`);
  const config = dir.join(`${name}.yaml`);
  await writeFile(
    config,
    JSON.stringify({
      instance: name,
      lmdbs: { main: { path: database, schema_tracks_changes: true, options: { no_subdir: true } } },
      storage: {
        type: 's3',
        options: {
          endpoint_url: s3.endpoint,
          bucket: 'limit',
          create_bucket: true,
          access_key: s3.accessKey,
          secret_key: s3.secretKey,
        },
      },
      spool_dir: dir.join(`${name}-spool`),
      http: { address: `127.0.0.1:${port}` },
    }),
  );
  // What is in the page cache already would not be counted: a page belongs to the group that first used it.
  for (const file of [database, binary, `${binary}.node`]) {
    expect((await run({ command: 'dd', args: [`if=${file}`, 'iflag=nocache', 'count=0'] })).code).toBe(0);
  }
  const group = stack.use(await controlGroup(LIMITS));
  const [command = '', ...enter] = group.enter;
  const args = [...enter, 'setpriv', '--pdeathsig', 'SIGKILL', binary, '-c', config, 'sync'];
  const daemon = stack.use(await start({ command, args, ownProcessGroup: true }));
  let peakAnonymousBytes = 0;
  let isOver = false;
  const sample = async (): Promise<void> => {
    while (!isOver) {
      peakAnonymousBytes = Math.max(peakAnonymousBytes, (await group.usage()).anonymousBytes);
      await delay(5);
    }
  };
  const sampling = sample();
  stack.defer(async () => {
    isOver = true;
    await sampling;
  });
  const death = daemon.exited.then(async ({ code, signal }) => {
    const { killed } = await group.usage();
    throw new Error(`${name} has ended: ${code ?? signal}, ${killed} killed for want of memory`);
  });
  // Nobody listens any more when it is stopped.
  death.catch(() => undefined);
  const owned = stack.move();
  return {
    name,
    daemon,
    group,
    death,
    peakAnonymousBytes: () => peakAnonymousBytes,
    isHealthy: async () => (await fetch(`http://127.0.0.1:${port}/healthz`)).status === 200,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

function described(usage: GroupUsage, peakAnonymousBytes: number): string {
  const mib = (bytes: number): string => `${Math.round(bytes / 1024 ** 2)} MiB`;
  return [
    `peak ${mib(usage.peakBytes)} (memory.max_usage_in_bytes)`,
    `peak of anonymous memory ${mib(peakAnonymousBytes)}`,
    `${usage.limitHits} times at the limit (memory.failcnt)`,
    `${usage.killed} killed (memory.oom_control)`,
    `at last ${mib(usage.anonymousBytes)} anonymous, ${mib(usage.cacheBytes)} cache`,
  ].join(', ');
}
