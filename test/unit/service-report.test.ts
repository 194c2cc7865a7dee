/** What the service manager is told, and by whom; the real socket is in test/e2e/systemd.test.ts. */
import { describe, expect, test } from 'vitest';
import { takeServiceManager } from '../../src/cli/service-manager.ts';
import { LightningStreamError } from '../../src/errors.ts';
import type { DatabaseStatus } from '../../src/http/status.ts';
import { createHealth } from '../../src/observability/health.ts';
import { reportTo, type ServiceManager, statusLine } from '../../src/sync/service-report.ts';
import { recordLog } from '../helpers/log-recorder.ts';
import { until } from '../helpers/process.ts';

describe('statusLine', () => {
  const database: DatabaseStatus = {
    name: 'main',
    path: '/var/lib/powerdns/pdns.lmdb',
    phase: 'waiting',
    problem: undefined,
    stats: undefined,
    lastStored: undefined,
    instances: [],
  };
  const at = (time: string) => ({ name: 'x', timestampMs: Date.parse(time) });

  test('when each database last stored and merged something, and whose', () => {
    const seen = (instance: string, time: string, own = false) => ({
      instance,
      own,
      newestSeen: undefined,
      lastMerged: at(time),
    });
    const instances = [
      seen('ns1', '2026-11-22T13:00:00Z', true),
      seen('ns2', '2026-11-22T12:00:40.9Z'),
      seen('ns3', '2026-11-21T12:00:00Z'),
    ];
    const lastStored = { ...at('2026-11-22T12:01:02.5Z'), sizeBytes: 1 };
    const databases = [
      { ...database, lastStored, instances },
      { ...database, name: 'shard', phase: 'listing' },
    ];
    expect(statusLine(createHealth(Date.now).report(), databases)).toBe(
      "OK; main: stored 2026-11-22T12:01:02Z, merged ns2's of 2026-11-22T12:00:40Z; " +
        'shard: nothing stored or merged yet (listing)',
    );
  });

  test('what is wrong comes first, failures before warnings, all in one line', () => {
    const health = createHealth(Date.now);
    health.condition('a_snapshot_set_aside').set('warning', 'no\nline');
    health.condition('main_local_fault').set('failure', 'disk full');
    expect(statusLine(health.report(), [])).toBe(
      String.raw`Unavailable: main_local_fault: disk full; a_snapshot_set_aside: no\nline`,
    );
  });
});

describe('reportTo', () => {
  function report(
    manager: Partial<ServiceManager> = {},
    status = (): Promise<string> => Promise.resolve('OK'),
  ) {
    const messages: string[] = [];
    const log = recordLog();
    const abort = new AbortController();
    const service = reportTo({
      manager: {
        notify: (state) => {
          messages.push(state);
          return Promise.resolve();
        },
        watchdogMs: undefined,
        ...manager,
      },
      status,
      logger: log.logger,
      signal: abort.signal,
    });
    return { service, messages, log, abort };
  }

  test('ready once, then the status, then the end', async () => {
    const { service, messages, abort } = report();
    service.ready();
    service.ready();
    await until(() => messages.length === 2, { what: 'a status' });
    abort.abort();
    await service.end();
    expect(messages).toEqual(['READY=1', 'STATUS=OK', 'STOPPING=1\nSTATUS=Stopping']);
  });

  test('a daemon that ends before it was ready never says that it is', async () => {
    const { service, messages, abort } = report({ watchdogMs: 1 });
    abort.abort();
    service.ready();
    await service.end();
    expect(messages).toEqual(['STOPPING=1\nSTATUS=Stopping']);
  });

  test('readiness does not wait for the status', async () => {
    const { service, messages } = report({}, () => new Promise(() => undefined));
    service.ready();
    await until(() => messages.length === 1, { what: 'READY' });
    await service.end();
    expect(messages).toEqual(['READY=1', 'STOPPING=1\nSTATUS=Stopping']);
  });

  test('one warning when nobody can be told, and the daemon goes on', async () => {
    const { service, log } = report({
      notify: () => Promise.reject(new LightningStreamError('GONE', 'gone')),
      watchdogMs: 4,
    });
    service.ready();
    await service.end();
    expect(log.text().match(/level=warning.*/g)).toEqual([
      'level=warning msg="The service manager cannot be told how the daemon is" error="gone (GONE)"',
    ]);
  });
});

describe('takeServiceManager', () => {
  const take = (env: Record<string, string>) => {
    const left = { ...env, OTHER: 'x' };
    return { manager: takeServiceManager({ env: left, pid: 7 }), left };
  };

  test('what it reads is out of the environment, so that no program that we start speaks for us', () => {
    const env = { NOTIFY_SOCKET: '/run/n', WATCHDOG_USEC: '1000', WATCHDOG_PID: '7' };
    const { manager, left } = take(env);
    expect(left).toEqual({ OTHER: 'x' });
    expect(manager?.env).toEqual(env);
  });

  test.each([
    ['another process is watched', { WATCHDOG_USEC: '1000', WATCHDOG_PID: '8' }, undefined],
    ['this one is', { WATCHDOG_USEC: '60000000', WATCHDOG_PID: '7' }, 60_000],
    ['whoever has the variable is', { WATCHDOG_USEC: '500000' }, 500],
    ['nobody is', {}, undefined],
    ['for ever', { WATCHDOG_USEC: '0' }, undefined],
    ['not a number', { WATCHDOG_USEC: 'x' }, undefined],
  ] as const)('watchdog: %s', (_, env, watchdogMs) => {
    expect(take({ NOTIFY_SOCKET: '@n', ...env }).manager?.watchdogMs).toBe(watchdogMs);
  });

  test('nobody to tell', () => {
    expect(take({}).manager).toBeUndefined();
    expect(take({ NOTIFY_SOCKET: '', WATCHDOG_USEC: '1000' }).manager).toBeUndefined();
  });
});
