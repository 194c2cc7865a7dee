/** A lock that is held until it is released or the process is gone, however it went. */
export interface Lock {
  release(): void;
}

/**
 * Takes an exclusive lock on an existing file without waiting, with the meaning of flock(2) LOCK_EX | LOCK_NB: it belongs to
 * the open file, not to the process, so that a second call on the same file fails in one process too, and it is seen by
 * every container and user on this kernel. Undefined when somebody else holds it.
 * @throws an error with a system `code` when the file cannot be opened or its file system knows no locks.
 */
export type TryLock = (path: string) => Lock | undefined;
