import { getEventListeners } from 'node:events';
import { describe, expect, it } from 'vitest';
import { Bell, Limit, type LimitObserver, sleep } from '../../src/sync/wait.ts';

const listeners = (signal: AbortSignal): number => getEventListeners(signal, 'abort').length;
/** Lets everything that is already due run. */
const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe('sleep', () => {
  it('ends after its time and leaves no listener', async () => {
    const { signal } = new AbortController();
    const from = performance.now();
    const wait = sleep(20, signal);
    expect(listeners(signal)).toBe(1);
    await wait;
    expect(performance.now() - from).toBeGreaterThanOrEqual(19);
    expect(listeners(signal)).toBe(0);
  });

  it('ends with the reason of the signal', async () => {
    const controller = new AbortController();
    const wait = sleep(60_000, controller.signal);
    const reason = new Error('the end');
    controller.abort(reason);
    await expect(wait).rejects.toBe(reason);
    expect(listeners(controller.signal)).toBe(0);
    await expect(sleep(0, controller.signal)).rejects.toBe(reason);
  });

  it('does not turn a delay too long for a timer into a short one', async () => {
    const controller = new AbortController();
    let ended = false;
    const wait = sleep(2 ** 40, controller.signal).finally(() => (ended = true));
    await sleep(20, new AbortController().signal);
    expect(ended).toBe(false);
    controller.abort(new Error('the end'));
    await expect(wait).rejects.toThrow('the end');
  });
});

describe('Bell', () => {
  it('wakes the waiting loop and leaves no listener', async () => {
    const bell = new Bell();
    const { signal } = new AbortController();
    const wait = bell.wait(60_000, signal);
    bell.ring();
    await expect(wait).resolves.toBe(true);
    expect(listeners(signal)).toBe(0);
  });

  it('keeps rings for the next wait, several as one', async () => {
    const bell = new Bell();
    const { signal } = new AbortController();
    bell.ring();
    bell.ring();
    await expect(bell.wait(60_000, signal)).resolves.toBe(true);
    await expect(bell.wait(1, signal)).resolves.toBe(false);
  });

  it('keeps a ring that comes between the wake-up and its handling out of the next wait only once', async () => {
    const bell = new Bell();
    const { signal } = new AbortController();
    const wait = bell.wait(60_000, signal);
    bell.ring();
    bell.ring();
    await expect(wait).resolves.toBe(true);
    await expect(bell.wait(1, signal)).resolves.toBe(false);
  });

  it('ends with the reason of the signal, also when it rang before', async () => {
    const bell = new Bell();
    const controller = new AbortController();
    const wait = bell.wait(60_000, controller.signal);
    controller.abort(new Error('the end'));
    await expect(wait).rejects.toThrow('the end');
    bell.ring();
    await expect(bell.wait(60_000, controller.signal)).rejects.toThrow('the end');
    expect(listeners(controller.signal)).toBe(0);
  });
});

describe('Limit', () => {
  it('lets so many in and hands a place to the first that waits', async () => {
    const limit = new Limit(2);
    const { signal } = new AbortController();
    const entered: string[] = [];
    const enter = async (name: string): Promise<() => void> => {
      const release = await limit.acquire(signal);
      entered.push(name);
      return release;
    };
    const a = await enter('a');
    await enter('b');
    const c = enter('c');
    const d = enter('d');
    await settle();
    expect(entered).toEqual(['a', 'b']);
    a();
    a();
    await c;
    await settle();
    expect(entered).toEqual(['a', 'b', 'c']);
    (await c)();
    await d;
    expect(listeners(signal)).toBe(0);
  });

  it('forgets one that gave up waiting', async () => {
    const limit = new Limit(1);
    const controller = new AbortController();
    const { signal } = new AbortController();
    const release = await limit.acquire(signal);
    const impatient = limit.acquire(controller.signal);
    const patient = limit.acquire(signal);
    controller.abort(new Error('the end'));
    await expect(impatient).rejects.toThrow('the end');
    release();
    (await patient)();
    (await limit.acquire(signal))();
  });

  it('tells what it does', async () => {
    const told: string[] = [];
    const observer: LimitObserver = {
      waiting: (change) => told.push(`waiting ${change}`),
      acquired: () => told.push('acquired'),
      released: () => told.push('released'),
    };
    const release = await new Limit(1, observer).acquire(new AbortController().signal);
    release();
    release();
    expect(told).toEqual(['waiting 1', 'waiting -1', 'acquired', 'released']);
  });
});
