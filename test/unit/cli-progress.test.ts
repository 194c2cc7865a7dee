import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { progressText, withProgress } from '../../src/cli/progress.ts';
import { sink } from '../helpers/output.ts';

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

const half = { entries: 1_000_000, bytes: 50, totalBytes: 100 };

/** What long work wrote to standard error. */
async function shown(isTTY: { readonly stderr: boolean; readonly stdout: boolean }, prints: boolean) {
  const chunks: Buffer[] = [];
  const io = {
    stdout: { ...sink([]), isTTY: isTTY.stdout },
    stderr: { ...sink(chunks), isTTY: isTTY.stderr },
  };
  const work = async ({ onProgress }: { onProgress?: (progress: typeof half) => void }) => {
    onProgress?.({ ...half, entries: 1 });
    vi.advanceTimersByTime(1000);
    onProgress?.(half);
    return Promise.resolve('result');
  };
  expect(await withProgress(io, 'dump main', work, { prints })).toBe('result');
  return Buffer.concat(chunks).toString();
}

test('a terminal sees how far long work is; the line is gone at the end', async () => {
  const clear = '\r\u001B[2K';
  expect(await shown({ stderr: true, stdout: false }, true)).toBe(
    `${clear}dump main: 1000000 records, 50 %${clear}`,
  );
  expect(await shown({ stderr: true, stdout: true }, false)).not.toBe('');
});

test('nothing is shown in a pipe, nor amid what is printed', async () => {
  expect(await shown({ stderr: false, stdout: false }, false)).toBe('');
  expect(await shown({ stderr: false, stdout: true }, false)).toBe('');
  expect(await shown({ stderr: true, stdout: true }, true)).toBe('');
});

test('where it is asked for, a line each second instead', async () => {
  const chunks: Buffer[] = [];
  const io = { stdout: sink([]), stderr: sink(chunks) };
  await withProgress(
    io,
    'migrate x',
    ({ onProgress }) => {
      for (let quarter = 1; quarter <= 10; quarter += 1) {
        vi.advanceTimersByTime(250);
        onProgress?.({ ...half, entries: quarter });
      }
      return Promise.resolve();
    },
    { lines: true },
  );
  expect(Buffer.concat(chunks).toString()).toBe(
    'lightningstream: migrate x: 4 records, 50 %\nlightningstream: migrate x: 8 records, 50 %\n',
  );
});

test('work that fails leaves no line, either', async () => {
  const chunks: Buffer[] = [];
  const io = { stdout: sink([]), stderr: { ...sink(chunks), isTTY: true } };
  const failing = withProgress(io, 'x', ({ onProgress }) => {
    vi.advanceTimersByTime(5000);
    onProgress?.(half);
    return Promise.reject(new Error('broken'));
  });
  await expect(failing).rejects.toThrow('broken');
  expect(Buffer.concat(chunks).toString()).toMatch(/\[2K$/);
});

test.each([
  [{ entries: 0, bytes: 0, totalBytes: 0 }, '…'],
  [{ entries: 0, bytes: 2_097_153, totalBytes: 0 }, '2.0 MB'],
  [{ entries: 7, bytes: 7, totalBytes: 0 }, '7 records'],
  [{ entries: 7, bytes: 7, totalBytes: 7 }, '7 records, 99 %'],
])('%j is %s', (progress, text) => {
  expect(progressText(progress)).toBe(text);
});
