import {
  closeSync,
  constants,
  fstatSync,
  openSync,
  readSync,
  statSync,
  type Stats,
  writeSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { createHash } from 'node:crypto';
import { getAsset, getRawAsset, isSea } from 'node:sea';
import { fileURLToPath } from 'node:url';
import { brotliDecompressSync } from 'node:zlib';

import type * as Addon from '../../native/addon/index.d.ts';
import { LightningStreamError } from '../errors.ts';

/** Its name beside the single binary. */
const ADDON = 'lightningstream.node';
/** Inside the single binary: the addon, compressed by brotli, and its SHA-256 as hexadecimal text. */
export const ADDON_ASSETS = { content: `${ADDON}.br`, digest: `${ADDON}.sha256` } as const;
/** From open(2), which Node.js does not name: `__O_TMPFILE`, the same number on x86-64 and arm64. */
const O_TMPFILE = 0o20000000 | constants.O_DIRECTORY;
const READ_AT_ONCE = 65_536;

let loaded: typeof Addon | undefined;

/** The addon; the only place that knows where it lies. @throws LightningStreamError `ADDON` */
export function loadAddon(): typeof Addon {
  loaded ??= isSea() ? loadFromBinary() : loadFromCheckout();
  return loaded;
}

function loadFromCheckout(): typeof Addon {
  const path = fileURLToPath(new URL(`../../native/addon/${ADDON}`, import.meta.url));
  try {
    return createRequire(import.meta.url)(path) as typeof Addon;
  } catch (error) {
    throw new LightningStreamError('ADDON', `cannot load the native addon ${path}: ${firstLine(error)}`, {
      cause: error,
    });
  }
}

/**
 * The system loads code from files only. Where a package put the addon beside the binary, that file is taken; it needs no place to
 * write. Else the addon inside is written to a file without a name, in the first directory that allows code: there is nothing to be
 * planted before, exchanged meanwhile, shared with another instance or left behind.
 */
function loadFromBinary(): typeof Addon {
  const directory = dirname(process.execPath);
  const beside = openBeside(directory, getAsset(ADDON_ASSETS.digest, 'utf8'));
  if (beside !== undefined) {
    try {
      return loadDescriptor(beside);
    } catch {
      // Such as a directory that must not run code.
    }
  }
  const embedded = brotliDecompressSync(getRawAsset(ADDON_ASSETS.content));
  const refusals: string[] = [];
  for (const place of writablePlaces(directory)) {
    try {
      return loadDescriptor(openUnnamed(place, embedded));
    } catch (error) {
      refusals.push(`${place}: ${firstLine(error)}`);
    }
  }
  throw new LightningStreamError(
    'ADDON',
    `cannot load the native addon: put ${ADDON} of this version beside ${process.execPath}, or name a directory that is ` +
      `writable and not mounted noexec by TMPDIR (${refusals.join('; ')})`,
  );
}

/**
 * The addon beside the binary, open for reading, if it can be trusted: it must hold the very bytes that are inside the binary (an
 * upgrade may just have replaced one of the two), and nobody may be able to change them who could not as well change the binary. So
 * it must belong to root or to the binary's owner and be writable by no one else. Where the directory lets others put files (/tmp),
 * theirs have another owner.
 */
function openBeside(directory: string, digest: string): number | undefined {
  let descriptor: number;
  try {
    // A pipe of that name must not keep us waiting.
    descriptor = openSync(join(directory, ADDON), constants.O_RDONLY | constants.O_NONBLOCK);
  } catch {
    return undefined;
  }
  try {
    if (isTrusted(fstatSync(descriptor), statSync(process.execPath)) && digestOf(descriptor) === digest)
      return descriptor;
  } catch {
    // As if it were not there.
  }
  closeSync(descriptor);
  return undefined;
}

function isTrusted(file: Stats, binary: Stats): boolean {
  return (
    file.isFile() &&
    (file.uid === 0 || file.uid === binary.uid) &&
    (file.mode & (constants.S_IWGRP | constants.S_IWOTH)) === 0
  );
}

function digestOf(descriptor: number): string {
  const hash = createHash('sha256');
  const chunk = Buffer.allocUnsafe(READ_AT_ONCE);
  for (;;) {
    const length = readSync(descriptor, chunk, 0, chunk.length, null);
    if (length === 0) return hash.digest('hex');
    hash.update(chunk.subarray(0, length));
  }
}

/** Where files may be made, the usual first. Not /run: systemd mounts it noexec. */
function writablePlaces(directory: string): Set<string> {
  const { TMPDIR, XDG_RUNTIME_DIR, CACHE_DIRECTORY } = process.env;
  const cache = CACHE_DIRECTORY?.split(':')[0];
  const places = [TMPDIR, '/tmp', '/var/tmp', '/dev/shm', XDG_RUNTIME_DIR, cache, directory, process.cwd()];
  return new Set(places.flatMap((place) => place || []));
}

/** Such a file has no name, and can never get one (O_EXCL). */
function openUnnamed(directory: string, content: Buffer): number {
  const descriptor = openSync(directory, O_TMPFILE | constants.O_EXCL | constants.O_RDWR, 0o600);
  try {
    for (let at = 0; at < content.length;) at += writeSync(descriptor, content, at);
    return descriptor;
  } catch (error) {
    closeSync(descriptor);
    throw error;
  }
}

/** Closes the descriptor: what is loaded stays. */
function loadDescriptor(descriptor: number): typeof Addon {
  try {
    const module = { exports: {} as typeof Addon };
    process.dlopen(module, `/proc/self/fd/${descriptor}`);
    return module.exports;
  } finally {
    closeSync(descriptor);
  }
}

function firstLine(error: unknown): string {
  return error instanceof Error ? (error.message.split('\n')[0] ?? '') : String(error);
}
