import { createHash } from 'node:crypto';
import { LightningStreamError } from '../errors.ts';

/**
 * Names of snapshot objects, `<db>__<instance>__<timestamp>__<generation>[__<extra>…].<extension>`, as PowerDNS
 * Lightning Stream 1.0 writes and reads them.
 */

/** What kind of object a name stands for; a new kind gets an extension of its own, which older readers ignore. */
export type SnapshotKind = 'snapshot';

/** The parts of a name that could be parsed. */
export interface SnapshotName {
  /** The whole object name. */
  readonly name: string;
  /** Key under `lmdbs:` in the configuration. */
  readonly database: string;
  readonly instance: string;
  /** UTC, `YYYYMMDD-HHMMSS-NNNNNNNNN`, as it stands in the name. */
  readonly timestamp: string;
  /** The same in ns since 1970; negative before, beyond 64 bits far away from it. */
  readonly timestampNano: bigint;
  /** `GX` from every known writer; anything is accepted. */
  readonly generation: string;
  /** Optional items, one capital letter and a value each; unknown ones are kept and mean nothing. */
  readonly extras: readonly string[];
  /** All after the first dot. */
  readonly extension: string;
  readonly kind: SnapshotKind;
}

/** Parts to make a name of. */
export interface SnapshotNameParts {
  readonly database: string;
  readonly instance: string;
  /** Either the text or ns since 1970. */
  readonly timestamp: string | bigint;
  /** Default `GX`. */
  readonly generation?: string;
  /** Written in the given order, which should be sorted. */
  readonly extras?: readonly string[];
  /** Default `pb.gz`. */
  readonly extension?: string;
}

/** The extension of a full snapshot. */
export const SNAPSHOT_EXTENSION = 'pb.gz';
/** The generation that every writer uses. */
export const DEFAULT_GENERATION = 'GX';

const SEPARATOR = '__';
const TIMESTAMP = /^(\d{4})(\d{2})(\d{2})-(\d{2})(\d{2})(\d{2})-(\d{9})$/;
const NANOS_PER_SECOND = 1_000_000_000n;
const NANOS_PER_MS = 1_000_000n;

/**
 * Takes an object name apart. Undefined for everything that is not a snapshot: no dot, an unknown extension, fewer than
 * four parts, or a timestamp that is no moment of the calendar. Such objects are to be left alone.
 */
export function parseSnapshotName(name: string): SnapshotName | undefined {
  const dot = name.indexOf('.');
  if (dot < 0) return undefined;
  const extension = name.slice(dot + 1);
  if (extension !== SNAPSHOT_EXTENSION) return undefined;
  const [database, instance, timestamp, generation, ...extras] = name.slice(0, dot).split(SEPARATOR);
  if (
    database === undefined ||
    instance === undefined ||
    timestamp === undefined ||
    generation === undefined
  ) {
    return undefined;
  }
  const timestampNano = parseNameTimestamp(timestamp);
  if (timestampNano === undefined) return undefined;
  return {
    name,
    database,
    instance,
    timestamp,
    timestampNano,
    generation,
    extras,
    extension,
    kind: 'snapshot',
  };
}

/**
 * The object name for these parts.
 * @throws LightningStreamError `NAME_INVALID` when no reader would find the same parts in it, see {@link isDatabaseName}.
 */
export function buildSnapshotName(parts: SnapshotNameParts): string {
  const {
    database,
    instance,
    generation = DEFAULT_GENERATION,
    extras = [],
    extension = SNAPSHOT_EXTENSION,
  } = parts;
  const timestamp =
    typeof parts.timestamp === 'bigint' ? formatNameTimestamp(parts.timestamp) : parts.timestamp;
  const name = `${[database, instance, timestamp, generation, ...extras].join(SEPARATOR)}.${extension}`;
  const found = parseSnapshotName(name);
  const legible =
    found?.database === database &&
    found.instance === instance &&
    found.timestamp === timestamp &&
    found.generation === generation &&
    found.extras.length === extras.length &&
    found.extras.every((extra, index) => extra === extras[index]);
  if (!legible) {
    throw new LightningStreamError(
      'NAME_INVALID',
      `${JSON.stringify(name)} would not be recognised as a snapshot`,
      {
        fields: { object: name },
      },
    );
  }
  return name;
}

/**
 * Whether snapshots of a database of this name are recognised by readers: a dot ends the parsed part of a name, `__`
 * separates parts, and a final `_` would move over to the instance.
 */
export function isDatabaseName(text: string): boolean {
  return (
    text !== '' &&
    !text.includes('.') &&
    !text.includes('/') &&
    !text.includes(SEPARATOR) &&
    !text.endsWith('_')
  );
}

/** What every object name of a database begins with; to list by. */
export function databasePrefix(database: string): string {
  return `${database}${SEPARATOR}`;
}

/**
 * `YYYYMMDD-HHMMSS-NNNNNNNNN` in UTC.
 * @throws RangeError outside the years 0 to 9999.
 */
export function formatNameTimestamp(nano: bigint): string {
  const nanos = ((nano % NANOS_PER_SECOND) + NANOS_PER_SECOND) % NANOS_PER_SECOND;
  const ms = Number((nano - nanos) / NANOS_PER_MS);
  // Years outside 0…9999 have a sign and six digits in ISO 8601, or no date at all.
  const match = /^(\d{4})-(\d{2})-(\d{2})T(\d{2}):(\d{2}):(\d{2})\./.exec(new Date(ms).toISOString());
  if (match === null) throw new RangeError(`timestamp ${nano} has no four-digit year`);
  const [, year, month, day, hour, minute, second] = match;
  return `${year}${month}${day}-${hour}${minute}${second}-${nanos.toString().padStart(9, '0')}`;
}

function parseNameTimestamp(text: string): bigint | undefined {
  const match = TIMESTAMP.exec(text);
  if (match === null) return undefined;
  const [, year, month, day, hour, minute, second, nanos = ''] = match;
  const iso = `${year}-${month}-${day}T${hour}:${minute}:${second}.000Z`;
  const ms = Date.parse(iso);
  // Date.parse moves 30 February and 24:00 on to the next day instead of refusing them.
  if (Number.isNaN(ms) || new Date(ms).toISOString() !== iso) return undefined;
  return BigInt(ms) * NANOS_PER_MS + BigInt(nanos);
}

/** A configured instance name as it stands in object names: each character outside `[a-zA-Z0-9-]` becomes `-`. */
export function sanitizeInstance(text: string): string {
  return text.replace(/[^a-zA-Z0-9-]/gu, '-');
}

/**
 * The instance part of our object names: the configured name, or else the hostname.
 * @throws LightningStreamError `INSTANCE_UNSET` when both are empty.
 */
export function instanceName(configured: string, hostname: string): string {
  const instance = sanitizeInstance(configured === '' ? hostname : configured);
  if (instance === '') {
    throw new LightningStreamError(
      'INSTANCE_UNSET',
      'instance: not set, and this host has no name to use instead; set it to a name that no other instance has',
    );
  }
  return instance;
}

/** Seven hex digits by which log lines name a snapshot, the same as Lightning Stream prints. */
export function shortHash(instance: string, timestamp: string): string {
  return createHash('sha256').update(`${instance}-${timestamp}`).digest('hex').slice(0, 7);
}
