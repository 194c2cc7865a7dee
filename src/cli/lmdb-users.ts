import { readFileSync } from 'node:fs';
import type { LmdbConfig } from '../config/types.ts';
import type { Native } from '../native/types.ts';

/** A process that has an LMDB open. */
export interface LmdbUser {
  /** 0 for one of another container, of which nothing else is known. */
  readonly pid: number;
  /** The program's name; undefined where it cannot be told. */
  readonly program: string | undefined;
  /** It syncs or receives: Lightning Stream, or this program. */
  readonly isDaemon: boolean;
}

/** Who has the LMDB open; to be asked before it is opened here. @throws NativeError when the lock file cannot be read */
export function lmdbUsers(native: Native, lmdb: LmdbConfig): readonly LmdbUser[] {
  return native.lmdbUsers(lmdb.path, lmdb.options).map(lmdbUser);
}

/** What is known of a process. */
export function lmdbUser(pid: number): LmdbUser {
  const words = read(pid, 'cmdline').split('\0').filter(Boolean);
  const runsUs = words.some((word) =>
    /(^|\/)(lightningstream[^/]*|dist\/main\.js|src\/main\.ts)$/.test(word),
  );
  return {
    pid,
    program: read(pid, 'comm').trim() || undefined,
    isDaemon: runsUs && words.some((word) => word === 'sync' || word === 'receive'),
  };
}

export function formatUser({ pid, program }: LmdbUser): string {
  if (pid === 0) return 'a process of another container';
  return program === undefined ? `process ${pid}` : `${program} (${pid})`;
}

function read(pid: number, name: string): string {
  try {
    return readFileSync(`/proc/${pid}/${name}`, 'utf8');
  } catch {
    return '';
  }
}
