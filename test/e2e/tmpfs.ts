import { spawnSync } from 'node:child_process';
import { isRoot } from './helpers.ts';

/** Whether {@link tmpfs} works here. */
export const canMount = isRoot && mountable();

/** A memory file system over the directory, as large as said, gone at the end of the scope. */
export function tmpfs(path: string, size: string): Disposable {
  mount('mount', '-t', 'tmpfs', '-o', `size=${size},mode=0777`, 'tmpfs', path);
  return {
    [Symbol.dispose]() {
      mount('umount', '--lazy', path);
    },
  };
}

function mountable(): boolean {
  const { status } = spawnSync('unshare', ['--mount', 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt']);
  return status === 0;
}

function mount(command: string, ...args: readonly string[]): void {
  const { status, stderr } = spawnSync(command, args);
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${stderr.toString().trim()}`);
}
