import { describe, expect, test } from 'vitest';
import { createHealth, formatGoSeconds, tracked } from '../../src/observability/health.ts';

const MINUTE = 60_000;
const CONFIG = { intervalMs: 5000, warnDurationMs: MINUTE, errorDurationMs: 5 * MINUTE };

function setUp() {
  const clock = { nowMs: Date.parse('2026-01-02T03:04:05Z') };
  return { clock, health: createHealth(() => clock.nowMs) };
}

describe('failure tracker', () => {
  test.each([
    ['no failure is none', undefined, 10 * MINUTE, 'OK', undefined],
    ['short of the warning', 'gone', MINUTE - 1, 'OK', undefined],
    ['at the warning', 'gone', MINUTE, 'Warning', "failed to write for 1m0s - last error: 'gone'"],
    [
      'short of the failure',
      'gone',
      5 * MINUTE - 1000,
      'Warning',
      "failed to write for 4m59s - last error: 'gone'",
    ],
    ['at the failure', 'gone', 5 * MINUTE, 'Unavailable', "failed to write for 5m0s - last error: 'gone'"],
  ] as const)('%s', (_, failure, laterMs, status, text) => {
    const { clock, health } = setUp();
    const tracker = health.failureTracker('main_storage_store', 'write', CONFIG);
    if (failure !== undefined) tracker.failure(new Error(failure));
    clock.nowMs += laterMs;
    const report = health.report();
    expect(report.status).toBe(status);
    expect(report.ok).toBe(status !== 'Unavailable');
    expect(report.has_warnings).toBe(status === 'Warning');
    const name = 'main_storage_store_failed_duration';
    expect({ ...report.failures, ...report.warnings }).toEqual(text === undefined ? {} : { [name]: text });
    expect(name in report.failures).toBe(status === 'Unavailable');
  });

  test('counts from the first of consecutive failures and names the last', () => {
    const { clock, health } = setUp();
    const tracker = health.failureTracker('x', 'list', CONFIG);
    tracker.failure(new Error('first'));
    clock.nowMs += MINUTE;
    tracker.failure('second\n line');
    clock.nowMs += MINUTE;
    expect(health.report().warnings['x_failed_duration']).toBe(
      "failed to list for 2m0s - last error: 'second line'",
    );
    tracker.success();
    expect(health.report().status).toBe('OK');
    tracker.failure(new Error('third'));
    clock.nowMs += MINUTE - 1;
    expect(health.report().status).toBe('OK');
    clock.nowMs += 1;
    expect(health.report().status).toBe('Warning');
  });

  test('a call that hangs counts from its start, until it ends', async () => {
    const { clock, health } = setUp();
    const tracker = health.failureTracker('x', 'list', CONFIG);
    const hung = Promise.withResolvers<number>();
    const call = tracked(tracker, () => hung.promise);
    clock.nowMs += MINUTE - 1;
    expect(health.report().status).toBe('OK');
    // Another one that is fast tells nothing about this one.
    expect(await tracked(tracker, () => Promise.resolve(1))).toBe(1);
    tracker.success();
    clock.nowMs += 1;
    expect(health.report().warnings).toEqual({
      x_failed_duration: 'trying to list for 1m0s, without an answer',
    });
    tracker.failure('gone');
    clock.nowMs += 4 * MINUTE;
    expect(health.report().failures).toEqual({
      x_failed_duration: 'trying to list for 5m0s, without an answer',
    });
    hung.reject(new Error('at last'));
    await expect(call).rejects.toThrow('at last');
    expect(health.report().warnings).toEqual({
      x_failed_duration: "failed to list for 4m0s - last error: 'gone'",
    });
    tracker.success();
    expect(health.report().status).toBe('OK');
  });

  test('what failed has failed since its call began', async () => {
    const { clock, health } = setUp();
    const tracker = health.failureTracker('x', 'list', CONFIG);
    const attempt = async (takesMs: number): Promise<void> => {
      const failing = tracked(tracker, () => {
        clock.nowMs += takesMs;
        return Promise.reject(new Error('timed out'));
      });
      await expect(failing).rejects.toThrow('timed out');
      tracker.failure(new Error('timed out'));
    };
    await attempt(15 * MINUTE);
    await attempt(MINUTE);
    expect(health.report().failures).toEqual({
      x_failed_duration: "failed to list for 16m0s - last error: 'timed out'",
    });
    tracker.success();
    tracker.failure(new Error('before it could begin'));
    expect(health.report().status).toBe('OK');
  });

  test('a call that has just begun does not count, whatever the durations', () => {
    const { clock, health } = setUp();
    health.failureTracker('x', 'list', { ...CONFIG, errorDurationMs: 0 }).begin();
    clock.nowMs += CONFIG.intervalMs - 1;
    expect(health.report().status).toBe('OK');
    clock.nowMs += 1;
    expect(health.report().failures).toEqual({
      x_failed_duration: 'trying to list for 5s, without an answer',
    });
  });

  test('0 means at once', () => {
    const { health } = setUp();
    health.failureTracker('x', 'list', { ...CONFIG, errorDurationMs: 0 }).failure('gone');
    expect(health.report().failures).toEqual({
      x_failed_duration: "failed to list for 0s - last error: 'gone'",
    });
  });
});

describe('start tracker', () => {
  const steps = ['passedInitialListing', 'passedInitialStore', 'passCompleted'] as const;

  test('turns true when all three are done, in any order, and stays so', () => {
    for (const order of [steps, steps.toReversed()]) {
      const { health } = setUp();
      const tracker = health.startTracker('main', { ...CONFIG, reportHealthz: true, reportMetadata: true });
      for (const step of order) {
        expect(health.report().metadata).toEqual({ startup_main: false });
        tracker[step]();
        tracker[step]();
      }
      expect(health.report().metadata).toEqual({ startup_main: true });
    }
  });

  test('becomes a check only when configured', () => {
    for (const reportHealthz of [false, true]) {
      const { clock, health } = setUp();
      const tracker = health.startTracker('main', { ...CONFIG, reportHealthz, reportMetadata: false });
      expect(health.report().metadata).toEqual({});
      clock.nowMs += MINUTE;
      const text = (duration: string) => ({
        main_startup_in_progress: `successful startup pending after ${duration}`,
      });
      expect(health.report().warnings).toEqual(reportHealthz ? text('1m0s') : {});
      clock.nowMs += 4 * MINUTE;
      expect(health.report().failures).toEqual(reportHealthz ? text('5m0s') : {});
      for (const step of steps) tracker[step]();
      expect(health.report()).toMatchObject({ status: 'OK', failures: {}, warnings: {}, metadata: {} });
    }
  });
});

test('a condition stays until it is cleared; the worst level decides', () => {
  const { clock, health } = setUp();
  const held = health.condition('main_held_back');
  held.set('warning', 'held back');
  const duplicate = health.condition('main_duplicate');
  duplicate.set('failure', 'another instance');
  clock.nowMs += 1e9;
  expect(health.report()).toMatchObject({
    ok: false,
    has_warnings: true,
    status: 'Unavailable',
    failures: { main_duplicate: 'another instance' },
    warnings: { main_held_back: 'held back' },
  });
  health.condition('main_duplicate').clear();
  held.set('warning', 'still');
  expect(health.report()).toMatchObject({ status: 'Warning', warnings: { main_held_back: 'still' } });
  held.clear();
  expect(health.report().status).toBe('OK');
});

test('tells since when it runs, and what time it is', () => {
  const { clock, health } = setUp();
  clock.nowMs += 1500;
  expect(health.report()).toMatchObject({
    since: '2026-01-02T03:04:05.000Z',
    time: '2026-01-02T03:04:06.500Z',
  });
});

// What Go's time.Duration(…).Round(time.Second).String() gives (documentation of package time).
test.each([
  [0, '0s'],
  [499, '0s'],
  [500, '1s'],
  [59_499, '59s'],
  [59_500, '1m0s'],
  [300_000, '5m0s'],
  [3_600_000, '1h0m0s'],
  [90_061_000, '25h1m1s'],
])('%d ms as Go prints it', (ms, text) => {
  expect(formatGoSeconds(ms)).toBe(text);
});
