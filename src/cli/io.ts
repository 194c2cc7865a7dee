import type { RootLogger } from '../observability/logger.ts';
import type { ServiceManager } from '../sync/service-report.ts';

/** What a program run touches of the process around it; `main.ts` gives the real things, tests their own. */
export interface Io {
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly stdout: Output;
  readonly stderr: Output;
  /** Systemd's journal is behind `stderr`. */
  readonly journal?: boolean;
  /** Told, as soon as the secrets are known, how to take them out of what else may be printed. */
  readonly onSecrets?: (mask: (text: string) => string) => void;
  /** Asks for an orderly end. */
  readonly signal?: AbortSignal;
  /** Wants to know when a daemon is ready and how it is. */
  readonly serviceManager?: ServiceManager | undefined;
  /**
   * Makes sure that the program's work is done under a process id of at least `minimum`. Undefined: it already is; else the
   * exit code of the process that did all the work instead.
   */
  readonly ensureMinimumPid?: (minimum: number, logger: RootLogger) => Promise<number | undefined>;
}

/** The part of a stream that is used. */
export interface Output {
  write(chunk: string | Uint8Array, done?: (error?: Error | null) => void): unknown;
  readonly isTTY?: boolean;
  /** The descriptor behind it, if there is one. */
  readonly fd?: number;
}

/** Resolves when the stream took it. */
export function print(output: Output, chunk: string | Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    output.write(chunk, (error) => {
      if (error instanceof Error) reject(error);
      else resolve();
    });
  });
}

/** Nobody reads our output any more; told by a stream or by the addon. (Storages have errors of their own, for their connections.) */
export function isClosedPipe(error: unknown): boolean {
  if (!(error instanceof Error) || (error as { code?: unknown }).code !== 'EPIPE') return false;
  return 'syscall' in error || error.name === 'NativeError';
}
