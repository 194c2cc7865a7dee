/**
 * The error type every layer throws for a failure somebody outside the program can cause.
 *
 * `message` is one line fit for an operator; `code` is stable and meant for programs. Anything that is not a
 * `LightningStreamError` is a bug of ours and may be shown with its stack at debug level only.
 */
export class LightningStreamError extends Error {
  /** Stable identifier, upper snake case. */
  readonly code: string;
  /** Facts for the log line (operation, object, database, dbi, key …); never a secret. */
  readonly fields: Readonly<Record<string, string | number | boolean>>;

  constructor(
    code: string,
    message: string,
    options: { cause?: unknown; fields?: Record<string, string | number | boolean> } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'LightningStreamError';
    this.code = code;
    this.fields = options.fields ?? {};
  }
}

/** The caller gave wrong arguments: exit code 2. */
export class UsageError extends LightningStreamError {
  constructor(message: string) {
    super('USAGE', message);
    this.name = 'UsageError';
  }
}

/** True when `error` says that the given signal's owner asked for the end, not that something went wrong. */
export function isAbort(error: unknown): boolean {
  return (
    error instanceof Error &&
    (error.name === 'AbortError' || (error as { code?: unknown }).code === 'ABORTED')
  );
}

/** One line for logs and health from anything that was thrown. */
export function errorMessage(error: unknown): string {
  const text = error instanceof Error ? error.message || error.name : String(error);
  return text.replace(/\s*\n\s*/g, ' ');
}
