import { LightningStreamError } from '../errors.ts';

/**
 * The native value header, big endian, in front of every value of an LMDB that is synchronised with `schema_tracks_changes: true`:
 *
 * | offset | size | field |
 * |---|---|---|
 * | 0 | 8 | timestamp, ns since the Unix epoch |
 * | 8 | 8 | id of the LMDB transaction that wrote it (local, never in a snapshot) |
 * | 16 | 1 | version, 0 |
 * | 17 | 1 | flags, 0x01 = deleted |
 * | 18 | 4 | reserved |
 * | 22 | 2 | number of 8-byte extension blocks that follow |
 *
 * Source: the header of PowerDNS Lightning Stream 1.0, which PowerDNS Authoritative 4.8+ writes.
 */

/** Bytes of a header without extension blocks; {@link writeHeader} writes none. */
export const HEADER_BYTES = 24;
const EXTENSION_BLOCK_BYTES = 8;
const VERSION_OFFSET = 16;
const FLAGS_OFFSET = 17;
const BLOCKS_OFFSET = 22;
const FLAG_DELETED = 0x01;
const MAX_UINT64 = 2n ** 64n - 1n;
const NANOS_PER_MS = 1_000_000n;

/** A stored value taken apart. */
export interface NativeValue {
  /** ns since the Unix epoch, 0 to 2^64 - 1. */
  readonly timestampNano: bigint;
  /** The LMDB transaction that wrote it, on this host. */
  readonly transactionId: bigint;
  /** The record is deleted: the entry only tells the other instances so. */
  readonly deleted: boolean;
  /** Always 0: others are an error. */
  readonly version: number;
  /** Blocks of 8 bytes that were skipped. */
  readonly extensionBlocks: number;
  /** The application's value: a view of the same memory, no copy. Empty for a deletion. */
  readonly value: Buffer;
}

/** What {@link writeHeader} puts in front of a value. */
export interface HeaderFields {
  /** ns since the Unix epoch, 0 to 2^64 - 1; {@link nowNano} by default. */
  readonly timestampNano?: bigint;
  /** The id of the LMDB transaction, where the LMDB package tells it. Nobody needs it: 0n by default. */
  readonly transactionId?: bigint;
  /** Marks a deletion, which has no value; false by default. */
  readonly deleted?: boolean;
}

/**
 * A value that has no valid header (`HEADER_INVALID`), or fields that none can be made of (`HEADER_FIELDS`).
 */
export class HeaderError extends LightningStreamError {
  declare readonly code: 'HEADER_INVALID' | 'HEADER_FIELDS';

  constructor(code: 'HEADER_INVALID' | 'HEADER_FIELDS', message: string) {
    super(code, message);
    this.name = 'HeaderError';
  }
}

/**
 * Takes a stored value apart. LMDB packages that return their own memory overwrite it with the next transaction: so it is with `value`.
 * @throws {@link HeaderError} `HEADER_INVALID` when it is shorter than its header, or of another version.
 */
export function readHeader(stored: Uint8Array): NativeValue {
  const bytes = Buffer.from(stored.buffer, stored.byteOffset, stored.byteLength);
  if (bytes.length < HEADER_BYTES)
    throw invalid(`it has ${bytes.length} bytes, a header alone ${HEADER_BYTES}`);
  const version = bytes.readUInt8(VERSION_OFFSET);
  if (version !== 0) throw invalid(`version ${version} is not supported`);
  const extensionBlocks = bytes.readUInt16BE(BLOCKS_OFFSET);
  const headerBytes = HEADER_BYTES + EXTENSION_BLOCK_BYTES * extensionBlocks;
  if (bytes.length < headerBytes) {
    throw invalid(
      `it has ${bytes.length} bytes, a header with ${extensionBlocks} extension blocks alone ${headerBytes}`,
    );
  }
  const deleted = (bytes.readUInt8(FLAGS_OFFSET) & FLAG_DELETED) !== 0;
  return {
    timestampNano: bytes.readBigUInt64BE(0),
    transactionId: bytes.readBigUInt64BE(8),
    deleted,
    version,
    extensionBlocks,
    value: bytes.subarray(deleted ? bytes.length : headerBytes),
  };
}

/**
 * A value to be stored: the header and a copy of `value` behind it.
 * @throws {@link HeaderError} `HEADER_FIELDS` when a number does not fit, or a deletion has a value.
 */
export function writeHeader(fields: HeaderFields = {}, value: Uint8Array = new Uint8Array(0)): Buffer {
  const { timestampNano = nowNano(), transactionId = 0n, deleted = false } = fields;
  for (const [name, number] of Object.entries({ timestampNano, transactionId })) {
    if (number < 0n || number > MAX_UINT64) {
      throw new HeaderError('HEADER_FIELDS', `${name} ${number} is not between 0 and ${MAX_UINT64}`);
    }
  }
  if (deleted && value.length > 0) {
    throw new HeaderError('HEADER_FIELDS', `a deletion has no value, and this one has ${value.length} bytes`);
  }
  const stored = Buffer.alloc(HEADER_BYTES + value.length);
  stored.writeBigUInt64BE(timestampNano, 0);
  stored.writeBigUInt64BE(transactionId, 8);
  stored.writeUInt8(deleted ? FLAG_DELETED : 0, FLAGS_OFFSET);
  stored.set(value, HEADER_BYTES);
  return stored;
}

/**
 * Whether a stored value says that its record is deleted; an application treats such an entry as if it were not there.
 * @throws {@link HeaderError} as {@link readHeader}.
 */
export function isDeleted(stored: Uint8Array): boolean {
  return readHeader(stored).deleted;
}

/**
 * Whether `a` takes the place of `b` where instances have both for one key: the later timestamp wins; among equal ones the lower value (unsigned
 * bytes, a prefix is lower), and a deletion before a live empty value. Nothing, or a value of zero bytes, loses against everything.
 * False for two that are equal: the place is not written again.
 * @throws {@link HeaderError} as {@link readHeader}.
 */
export function newer(a: Uint8Array | undefined, b: Uint8Array | undefined): boolean {
  if (a === undefined || a.length === 0) return false;
  const one = readHeader(a);
  if (b === undefined || b.length === 0) return true;
  const other = readHeader(b);
  if (one.timestampNano !== other.timestampNano) return one.timestampNano > other.timestampNano;
  const order = Buffer.compare(one.value, other.value);
  return order === 0 ? one.deleted && !other.deleted : order < 0;
}

let lastNano = 0n;

/**
 * A timestamp for a record that is written now: ns since the epoch by this host's clock (which counts ms here), no two in one process alike.
 *
 * `replaced`: the stored value whose place is taken. The timestamp is later than that one's, whatever the clock says: else a record that came
 * from a host whose clock is ahead of ours could not be changed here until our clock gets there.
 * @throws {@link HeaderError} as {@link readHeader}, for a `replaced` that has no valid header.
 */
export function nowNano(replaced?: Uint8Array): bigint {
  const after = replaced === undefined || replaced.length === 0 ? 0n : readHeader(replaced).timestampNano;
  const wall = BigInt(Date.now()) * NANOS_PER_MS;
  const nano = wall > lastNano ? wall : lastNano + 1n;
  // The clock's part alone: one value from far in the future must not take all others with it.
  lastNano = nano;
  return nano > after ? nano : after + 1n;
}

function invalid(detail: string): HeaderError {
  return new HeaderError('HEADER_INVALID', `a stored value has no valid Lightning Stream header: ${detail}`);
}
