import { spawnSync } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import type { Lock } from '../../src/storage/lock.ts';

/**
 * A real flock(2) for tests that do without the addon: util-linux locks the open file that it inherits, and the lock stays with
 * that file, which is still open here when the helper has ended.
 */
export function flock(path: string): Lock | undefined {
  const descriptor = openSync(path, 'r');
  const { status, error } = spawnSync('flock', ['--exclusive', '--nonblock', '3'], {
    stdio: ['ignore', 'ignore', 'inherit', descriptor],
  });
  if (status === 0) return { release: () => closeSync(descriptor) };
  closeSync(descriptor);
  if (error !== undefined) throw error;
  return undefined;
}
