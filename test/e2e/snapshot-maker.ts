/** Snapshot objects made by hand, well and badly formed: protobuf wire format as its specification has it, no code of ours. */
import { gzipSync } from 'node:zlib';

/** Wire types. */
const VARINT = 0;
const FIXED64 = 1;
const BYTES = 2;
const GROUP = 3;

export interface Entry {
  readonly key: string;
  readonly value?: string | Uint8Array;
  readonly timestampNano?: bigint;
  readonly deleted?: boolean;
}

/** A whole snapshot of one DBI, uncompressed. */
export function snapshot(dbi: string, entries: readonly Entry[]): Buffer {
  return Buffer.concat([
    head(),
    bytesField(3, Buffer.concat([bytesField(1, Buffer.from(dbi)), ...entries.map(entry)])),
  ]);
}

/** formatVersion, compatVersion and Meta: what every snapshot begins with. */
export function head(): Buffer {
  const meta = Buffer.concat([bytesField(1, Buffer.from('GX')), bytesField(2, Buffer.from('hand-made'))]);
  return Buffer.concat([varintField(1, 3n), varintField(4, 1n), bytesField(2, meta)]);
}

/** An entry as a field of its DBI. */
export function entry({ key, value = '', timestampNano = 0n, deleted = false }: Entry): Buffer {
  const time = Buffer.alloc(8);
  time.writeBigUInt64LE(timestampNano);
  const message = [
    bytesField(1, Buffer.from(key)),
    bytesField(2, Buffer.from(value as string)),
    tag(3, FIXED64),
    time,
    ...(deleted ? [varintField(4, 1n)] : []),
  ];
  return bytesField(2, Buffer.concat(message));
}

export function bytesField(field: number, content: Uint8Array): Buffer {
  return Buffer.concat([openField(field, BigInt(content.length)), content]);
}

/** Tag and length of a field of bytes, without the bytes. */
export function openField(field: number, lengthBytes: bigint): Buffer {
  return Buffer.concat([tag(field, BYTES), varint(lengthBytes)]);
}

export function varintField(field: number, value: bigint): Buffer {
  return Buffer.concat([tag(field, VARINT), varint(value)]);
}

export function groupStart(field: number): Buffer {
  return tag(field, GROUP);
}

export function varint(value: bigint): Buffer {
  const bytes: number[] = [];
  let rest = value;
  do {
    bytes.push(Number(rest & 0x7fn) | (rest > 0x7fn ? 0x80 : 0));
    rest >>= 7n;
  } while (rest > 0n);
  return Buffer.from(bytes);
}

/** One gzip member. */
export function member(content: Uint8Array): Buffer {
  return gzipSync(content, { level: 6 });
}

/** `piece` over and over, `times` times: small when compressed, because each member is a copy of the one before. */
export function repeated(piece: Uint8Array, times: number): Buffer {
  const one = member(piece);
  return Buffer.concat(Array.from({ length: times }, () => one));
}

function tag(field: number, wireType: number): Buffer {
  return varint(BigInt(field * 8 + wireType));
}
