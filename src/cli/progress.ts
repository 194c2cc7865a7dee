import { humanSize } from '../config/units.ts';
import type { Progress } from '../native/types.ts';
import type { Io } from './io.ts';

/** Work that ends sooner shows nothing. */
const QUIET_MS = 1000;
/** Between two lines. */
const LINE_MS = 1000;
/** Back to the line's begin, and all of it gone. */
const CLEAR = '\r\u001B[2K';

/** To be spread into the options of long work; without a terminal there is nothing in it. */
export interface ProgressOption {
  readonly onProgress?: (progress: Progress) => void;
}

/**
 * Runs `work` and shows how far it is: on a terminal, one line of standard error that is there after a second and gone at the end. Work
 * that `prints` to standard output shows nothing if that is a terminal, too. With `lines`, elsewhere than on a terminal a line is written
 * each second.
 */
export async function withProgress<T>(
  io: Pick<Io, 'stdout' | 'stderr'>,
  what: string,
  work: (option: ProgressOption) => Promise<T>,
  options: { readonly prints?: boolean; readonly lines?: boolean } = {},
): Promise<T> {
  const { stderr } = io;
  if (stderr.isTTY !== true && options.lines === true) {
    let lastMs = performance.now();
    return await work({
      onProgress: (progress) => {
        if (performance.now() - lastMs < LINE_MS) return;
        lastMs = performance.now();
        stderr.write(`lightningstream: ${what}: ${progressText(progress)}\n`);
      },
    });
  }
  if (stderr.isTTY !== true || (options.prints === true && io.stdout.isTTY === true)) return await work({});
  const startedMs = performance.now();
  let shown = false;
  const onProgress = (progress: Progress): void => {
    if (performance.now() - startedMs < QUIET_MS) return;
    shown = true;
    stderr.write(`${CLEAR}${what}: ${progressText(progress)}`);
  };
  try {
    return await work({ onProgress });
  } finally {
    if (shown) stderr.write(CLEAR);
  }
}

/** `1200000 records, 34 %`, as far as it is known. */
export function progressText({ entries, bytes, totalBytes }: Progress): string {
  const done = entries > 0 ? `${entries} records` : bytes > 0 ? humanSize(bytes) : '…';
  // Not 100 before the end.
  return totalBytes > 0 ? `${done}, ${Math.min(99, Math.floor((100 * bytes) / totalBytes))} %` : done;
}
