import { type FileHandle, lstat, open, unlink } from 'node:fs/promises';
import { attempt } from './system-error.ts';

const CHUNK_BYTES = 1 << 20;

/**
 * The rest of an open file, in chunks that are valid until the next one is asked for: one buffer serves a file of any size.
 * `path` is for errors.
 */
export async function* readChunks(
  handle: FileHandle,
  context: { readonly operation: 'load' | 'store'; readonly object: string; readonly path: string },
  signal: AbortSignal,
): AsyncGenerator<Uint8Array, void> {
  const buffer = Buffer.allocUnsafeSlow(CHUNK_BYTES);
  for (;;) {
    signal.throwIfAborted();
    const { bytesRead } = await attempt(context.operation, context.object, context.path, () =>
      handle.read(buffer, 0, buffer.length, null),
    );
    if (bytesRead === 0) return;
    yield buffer.subarray(0, bytesRead);
  }
}

/** Appends all chunks and returns their size in bytes. */
export async function writeChunks(
  handle: FileHandle,
  chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  context: { readonly operation: 'load' | 'store'; readonly object: string; readonly path: string },
  signal: AbortSignal,
): Promise<number> {
  let sizeBytes = 0;
  for await (const chunk of chunks) {
    for (let done = 0; done < chunk.length;) {
      signal.throwIfAborted();
      const { bytesWritten } = await attempt(context.operation, context.object, context.path, () =>
        handle.write(chunk, done),
      );
      done += bytesWritten;
    }
    sizeBytes += chunk.length;
  }
  signal.throwIfAborted();
  return sizeBytes;
}

/**
 * The receiving end of `load`: creates or truncates `toPath`, fills it and returns its size. A file that was not filled to
 * its end is removed.
 */
export async function saveObject(
  object: string,
  toPath: string,
  chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  signal: AbortSignal,
): Promise<number> {
  const context = { operation: 'load', object, path: toPath } as const;
  signal.throwIfAborted();
  const handle = await attempt('load', object, toPath, () => open(toPath, 'w'));
  try {
    const sizeBytes = await writeChunks(handle, chunks, context, signal);
    // Some file systems report a full disk only here.
    await attempt('load', object, toPath, () => handle.close());
    return sizeBytes;
  } catch (error) {
    await handle.close().catch(() => undefined);
    await removeRegularFile(toPath);
    throw error;
  }
}

/** `toPath` can be a device or a link that somebody named on a command line: these stay. */
async function removeRegularFile(path: string): Promise<void> {
  try {
    if ((await lstat(path)).isFile()) await unlink(path);
  } catch {
    // Gone already, or not ours to remove; the error that led here is the one to tell.
  }
}
