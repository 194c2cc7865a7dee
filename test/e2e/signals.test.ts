/** Being told to stop, at any moment. */
import { once } from 'node:events';
import { connect } from 'node:net';
import { describe, expect, test } from 'vitest';
import { cluster, DBI, type Instance, objectName, spoolDirectories } from './helpers.ts';
import { until } from '../helpers/process.ts';
import { member, snapshot } from './snapshot-maker.ts';

/** Prompt for a person, generous for a busy machine. */
const PROMPT_MS = 3000;

describe.each(['SIGTERM', 'SIGINT'] as const)('%s', (signal) => {
  test('when idle: exit code 0, nothing left behind', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    await a.app.put(DBI, 'key', 'value');
    await net.start();
    await a.logged('Stored snapshot');
    expect(spoolDirectories(a)).toHaveLength(1);
    await endsBy(a, signal);
    expect(spoolDirectories(a)).toEqual([]);
    expect(net.objects().filter((name) => !name.endsWith('.pb.gz'))).toEqual([]);
  });

  test('while another process holds the write lock: the merge that waits for it is given up', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    await a.app.put(DBI, 'key', 'value');
    await net.start();
    await a.logged('Stored snapshot');
    await a.app.call({ op: 'lock' });
    await net.upload(objectName('z'), member(snapshot(DBI, [{ key: 'z', value: 'z', timestampNano: 5n }])));
    await merging(a);
    await endsBy(a, signal);
    expect(spoolDirectories(a)).toEqual([]);
    await a.app.call({ op: 'unlock' });
    expect(await a.app.get(DBI, 'z')).toBeUndefined();
    expect(await a.app.get(DBI, 'key')).toMatchObject({ value: 'value' });
  });
});

describe('SIGTERM', () => {
  test('in the middle of a large snapshot: no object, whole or partial', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    await a.app.fill(1_000_000);
    await a.start();
    // The unfinished file is there: it is being written.
    await until(() => net.objects().some((name) => name.endsWith('.tmp')), {
      what: 'a snapshot has begun',
      intervalMs: 1,
    });
    await endsBy(a, 'SIGTERM');
    expect(net.objects().filter((name) => name.endsWith('.tmp'))).toEqual([]);
    expect(spoolDirectories(a)).toEqual([]);
    // What the next run stores is all of it.
    await a.run({ args: ['sync', '--only-once'] });
    const { stdout } = await a.run({ args: ['snapshots', 'list', '--long'] });
    expect(stdout).toContain('main__a__');
  });

  test('in the middle of a large merge: rolled back, and merged by the next run', async () => {
    await using net = await cluster(2);
    const [a, b] = [net.instance('a'), net.instance('b')];
    await a.app.fill(1_000_000);
    await a.run({ args: ['sync', '--only-once'] });
    await b.app.put(DBI, 'key', 'value');
    await b.start({ args: ['receive'] });
    await merging(b);
    await endsBy(b, 'SIGTERM');
    // All or nothing.
    const { entries } = await b.app.call({ op: 'digest' });
    expect([1, 1_000_001]).toContain(entries);
    const { code } = await b.run({ args: ['receive', '--only-once'] });
    expect(code).toBe(0);
    expect(await b.app.call({ op: 'digest' })).toMatchObject({ entries: 1_000_001 });
  });

  test('a second one ends it at once, with the code of the signal', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    await a.app.put(DBI, 'key', 'value');
    await net.start();
    // Half a request: the end waits a moment for the other half.
    const [host, port] = a.address.split(':');
    const client = connect(Number(port), host);
    client.on('error', () => undefined);
    await once(client, 'connect');
    client.write('GET /healthz HTTP/1.1\r\nHost: x\r\n');
    await a.page('/healthz');
    a.daemon.kill('SIGTERM');
    await until(
      () =>
        a.page('/healthz').then(
          () => false,
          () => true,
        ),
      {
        what: 'no new connection is taken',
        intervalMs: 2,
      },
    );
    a.daemon.kill('SIGTERM');
    expect(await a.daemon.exited).toMatchObject({ code: 128 + 15, signal: null });
    client.destroy();
  });

  test('before the storage was ever listed: exit code 0', async () => {
    await using net = await cluster(1);
    const a = net.instance('a');
    await a.start({ args: ['sync', '--wait-for-marker-file', 'never'] });
    await a.logged("Waiting for marker file 'never' to be present in the storage");
    await endsBy(a, 'SIGTERM');
    expect(spoolDirectories(a)).toEqual([]);
  });
});

async function endsBy(instance: Instance, signal: NodeJS.Signals): Promise<void> {
  const fromMs = performance.now();
  instance.daemon.kill(signal);
  const { code, stderr } = await instance.daemon.exited;
  expect({ code, signal: stderr.match(/internal error.*/)?.[0] }).toEqual({ code: 0, signal: undefined });
  expect(performance.now() - fromMs, 'ms until it ended').toBeLessThan(PROMPT_MS);
}

/** Waits until the status page says so. */
async function merging(instance: Instance): Promise<void> {
  await until(async () => (await instance.page('/')).body.includes('merging'), {
    what: `${instance.name} is merging`,
    intervalMs: 5,
  });
}
