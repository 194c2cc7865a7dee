/** The wire format of snapshots, read without our own code. */
import { gunzipSync } from 'node:zlib';

/** Field numbers of the wire format. */
const snapshotField = { meta: 2, databases: 3 } as const;
const metaField = { hostname: 3, lmdbTxnId: 4, timestampNano: 5 } as const;
const dbiField = { entries: 2 } as const;
const entryField = { timestampNano: 3 } as const;

interface Field {
  readonly number: number;
  readonly wireType: number;
  /** Where the field begins, tag included. */
  readonly start: number;
  /** Where its content begins: behind the length of a length-delimited one. */
  readonly content: number;
  readonly end: number;
}

/** The fields of one protobuf message in `bytes[start, end)`; only the wire types that snapshots have. */
function* fieldsOf(bytes: Buffer, from: number, to: number): Generator<Field> {
  let at = from;
  const varint = (): number => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = bytes.readUInt8(at++);
      value += (byte & 0x7f) * factor;
      if (byte < 0x80) return value;
    }
  };
  while (at < to) {
    const start = at;
    const tag = varint();
    const wireType = tag & 7;
    let content = at;
    if (wireType === 0) varint();
    else if (wireType === 1) at += 8;
    else if (wireType === 2) {
      const length = varint();
      content = at;
      at += length;
    } else throw new Error(`wire type ${wireType} at byte ${start}`);
    yield { number: tag >> 3, wireType, start, content, end: at };
  }
  if (at !== to) throw new Error(`a field ends at byte ${at}, its message at ${to}`);
}

/** A snapshot taken apart: what belongs to a run, and all other bytes, in order and in hexadecimal. */
export interface Parts {
  readonly hostname: string;
  readonly timestampNano: bigint;
  readonly lmdbTxnId: number;
  readonly rest: readonly string[];
  /** Timestamps of entries that are not 1 ns, which are shown as `now` in `rest`; only with `shadow`. */
  readonly times: readonly bigint[];
}

/** With `shadow`, timestamps of entries other than 1 ns are those of a run as well. */
export function takeApart(object: Buffer, { shadow = false } = {}): Parts {
  const bytes = gunzipSync(object);
  const hex = ({ start, end }: Field): string => bytes.toString('hex', start, end);
  const tag = ({ start, content }: Field): string =>
    bytes.toString('hex', start, Math.min(start + 1, content));
  let host = '';
  let timestampNano = 0n;
  let lmdbTxnId = 0;
  const rest: string[] = [];
  const times: bigint[] = [];
  for (const field of fieldsOf(bytes, 0, bytes.length)) {
    if (field.number === snapshotField.meta) {
      // Its own length depends on the host's name.
      rest.push(`Meta, tag ${tag(field)}`);
      for (const inner of fieldsOf(bytes, field.content, field.end)) {
        if (inner.number === metaField.hostname) {
          host = bytes.toString('utf8', inner.content, inner.end);
          rest.push('hostname');
        } else if (inner.number === metaField.timestampNano) {
          timestampNano = bytes.readBigUInt64LE(inner.content);
          rest.push('timestampNano');
        } else if (inner.number === metaField.lmdbTxnId && shadow) {
          lmdbTxnId = bytes.readUInt8(inner.content);
          rest.push('lmdbTxnID');
        } else {
          rest.push(hex(inner));
        }
      }
    } else if (field.number === snapshotField.databases && shadow) {
      rest.push(`DBI of ${field.end - field.content} bytes`);
      for (const inner of fieldsOf(bytes, field.content, field.end)) {
        if (inner.number !== dbiField.entries) {
          rest.push(hex(inner));
          continue;
        }
        const entry = [...fieldsOf(bytes, inner.content, inner.end)].map((part) => {
          if (part.number !== entryField.timestampNano) return hex(part);
          const time = bytes.readBigUInt64LE(part.content);
          if (time === 1n) return hex(part);
          times.push(time);
          return `${tag(part)} now`;
        });
        rest.push(entry.join(' '));
      }
    } else {
      rest.push(hex(field));
    }
  }
  return { hostname: host, timestampNano, lmdbTxnId, rest, times };
}
