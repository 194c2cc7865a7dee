import { constants } from 'node:os';
import { getSystemErrorMessage } from 'node:util';
import { StorageError } from './storage.ts';

/** An error of the operating system, as Node and the addon throw it. */
export interface SystemError extends Error {
  /** Its name in errno.h: `ENOENT`, `ENOSPC`, … */
  readonly code: keyof typeof constants.errno;
}

export function isSystemError(error: unknown): error is SystemError {
  if (!(error instanceof Error) || error instanceof StorageError) return false;
  const { code } = error as { code?: unknown };
  return typeof code === 'string' && Object.hasOwn(constants.errno, code);
}

/** `no space left on device (ENOSPC)`. */
export function systemCause(error: SystemError): string {
  return `${getSystemErrorMessage(-constants.errno[error.code])} (${error.code})`;
}

/**
 * Runs one step of a storage operation; an error of the operating system becomes a {@link StorageError} with its code that
 * names operation, object, cause and `path`. Everything else passes: it is an abort, already a StorageError, or a bug.
 */
export async function attempt<T>(
  operation: StorageError['operation'],
  object: string | undefined,
  path: string,
  step: () => Promise<T>,
): Promise<T> {
  try {
    return await step();
  } catch (error) {
    throw isSystemError(error) ? storageError(operation, object, path, error) : error;
  }
}

export function storageError(
  operation: StorageError['operation'],
  object: string | undefined,
  path: string,
  cause: SystemError,
): StorageError {
  const what = object === undefined ? operation : `${operation} ${JSON.stringify(object)}`;
  return new StorageError(
    cause.code,
    operation,
    object,
    `storage: cannot ${what}: ${systemCause(cause)}: ${path}`,
    { cause },
  );
}

/** Code `NOT_FOUND`. */
export function notFound(object: string, location: string, cause?: unknown): StorageError {
  const message = `storage: cannot load ${JSON.stringify(object)}: there is no such object in ${location}`;
  return new StorageError('NOT_FOUND', 'load', object, message, { cause });
}
