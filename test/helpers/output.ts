import type { Io, Output } from '../../src/cli/io.ts';

/** A program run's surroundings that remember what was written. */
export function capture(
  env: Readonly<Record<string, string | undefined>> = {},
  options: { readonly isTTY?: boolean; readonly signal?: AbortSignal } = {},
): Io & { readonly out: () => string; readonly outBytes: () => Buffer; readonly err: () => string } {
  const out: Buffer[] = [];
  const err: Buffer[] = [];
  return {
    env,
    stdout: { ...sink(out), ...(options.isTTY === undefined ? {} : { isTTY: options.isTTY }) },
    stderr: sink(err),
    ...(options.signal === undefined ? {} : { signal: options.signal }),
    out: () => Buffer.concat(out).toString(),
    outBytes: () => Buffer.concat(out),
    err: () => Buffer.concat(err).toString(),
  };
}

export function sink(chunks: Buffer[]): Output {
  return {
    write: (chunk, done) => {
      chunks.push(Buffer.from(chunk));
      done?.();
      return true;
    },
  };
}
