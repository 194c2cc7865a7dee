import { fstatSync } from 'node:fs';
import type { LogLevel } from '../config/types.ts';

/** sd-daemon(3): a line that begins with one of these is kept by systemd's journal, without it, at the level of that number. */
const PREFIXES: Readonly<Record<LogLevel, string>> = {
  trace: '<7>',
  debug: '<7>',
  info: '<6>',
  warning: '<4>',
  error: '<3>',
  fatal: '<2>',
};

/** What tells the journal how severe a line is; `journalctl -p` chooses by it. */
export function journalPrefix(level: LogLevel): string {
  return PREFIXES[level];
}

/** Whether systemd's journal is behind a descriptor: `JOURNAL_STREAM`, which children inherit, names its device and inode. */
export function isJournal(env: Readonly<Record<string, string | undefined>>, descriptor: number): boolean {
  const named = env['JOURNAL_STREAM'];
  if (named === undefined || named === '') return false;
  try {
    const { dev, ino } = fstatSync(descriptor, { bigint: true });
    return named === `${dev}:${ino}`;
  } catch {
    // Closed.
    return false;
  }
}
