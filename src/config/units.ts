/**
 * The units of the configuration file, as Go and the datasize package write them. What the program itself works with is
 * milliseconds and bytes, in plain numbers.
 */

const NS_PER_UNIT: Readonly<Record<string, bigint>> = {
  ns: 1n,
  us: 1_000n,
  '\u00b5s': 1_000n, // micro sign
  '\u03bcs': 1_000n, // Greek mu
  ms: 1_000_000n,
  s: 1_000_000_000n,
  m: 60_000_000_000n,
  h: 3_600_000_000_000n,
};
const NS_PER_MS = 1_000_000n;
const MAX_NS = 2n ** 63n - 1n;

/**
 * A duration in Go's syntax (`300ms`, `1h30m`, `-1.5s`, `.5s`, `0`) in ms, with a fraction when it is not whole; undefined when
 * `text` is none, or longer than 292 years. https://pkg.go.dev/time#ParseDuration
 */
export function parseDuration(text: string): number | undefined {
  const match = /^([-+]?)(0|(?:(?:\d+\.?\d*|\.\d+)[a-z\u00b5\u03bc]+)+)$/.exec(text);
  if (match === null) return undefined;
  let ns = 0n;
  for (const [, whole = '', fraction = '', unit = ''] of (match[2] ?? '').matchAll(
    /(\d*)\.?(\d*)([a-z\u00b5\u03bc]+)/g,
  )) {
    const nsPerUnit = NS_PER_UNIT[unit];
    if (nsPerUnit === undefined) return undefined;
    const scale = 10n ** BigInt(fraction.length);
    ns += BigInt(whole) * nsPerUnit + (BigInt(fraction) * nsPerUnit + scale / 2n) / scale;
  }
  if (ns > MAX_NS) return undefined;
  return nsToMs(match[1] === '-' ? -ns : ns);
}

/** Whole ns as ms; exact for whole ms. */
export function nsToMs(ns: bigint): number {
  return Number(ns / NS_PER_MS) + Number(ns % NS_PER_MS) / 1e6;
}

/** As Go prints it: `1h30m0s`, `1.5s`, `300ms`, `0s`. */
export function formatDuration(ms: number): string {
  const negative = ms < 0;
  const whole = Math.trunc(Math.abs(ms));
  // In two parts: a number holds 100 days of ns exactly, a bigint any.
  const ns = BigInt(whole) * NS_PER_MS + BigInt(Math.round((Math.abs(ms) - whole) * 1e6));
  const sign = negative && ns > 0n ? '-' : '';
  if (ns === 0n) return '0s';
  if (ns < 1_000n) return `${sign}${ns}ns`;
  if (ns < 1_000_000n) return `${sign}${decimal(ns, 1_000n)}\u00b5s`;
  if (ns < 1_000_000_000n) return `${sign}${decimal(ns, 1_000_000n)}ms`;
  const minutes = ns / 60_000_000_000n;
  const seconds = `${decimal(ns % 60_000_000_000n, 1_000_000_000n)}s`;
  if (minutes === 0n) return sign + seconds;
  const hours = minutes / 60n;
  return `${sign}${hours === 0n ? '' : `${hours}h`}${minutes % 60n}m${seconds}`;
}

/** `value / scale` (a power of ten) without trailing zeros. */
function decimal(value: bigint, scale: bigint): string {
  const digits = (value % scale).toString().padStart(scale.toString().length - 1, '0');
  const fraction = digits.replace(/0+$/, '');
  return fraction === '' ? `${value / scale}` : `${value / scale}.${fraction}`;
}

const SIZE_UNITS = ['B', 'KB', 'MB', 'GB', 'TB', 'PB', 'EB'] as const;
/** Index = power of 1024. */
const SIZE_NAMES: readonly (readonly string[])[] = [
  ['', 'b', 'byte'],
  ['k', 'kb', 'kilo', 'kilobyte', 'kilobytes'],
  ['m', 'mb', 'mega', 'megabyte', 'megabytes'],
  ['g', 'gb', 'giga', 'gigabyte', 'gigabytes'],
  ['t', 'tb', 'tera', 'terabyte', 'terabytes'],
  ['p', 'pb', 'peta', 'petabyte', 'petabytes'],
  ['e', 'eb'],
];
const MAX_SIZE = 2n ** 64n - 1n;

/** What {@link parseSize} says about a text that is no size. */
export type SizeProblem = 'syntax' | 'bits' | 'range';

/**
 * A size in bytes: whole numbers with B, K, KB, … EB in upper or lower case (1 KB = 1024), perhaps after a space; an empty text
 * is 0. `1Gb` is refused: those are bits. Beyond 2^53 it is the nearest number.
 */
export function parseSize(text: string): { sizeBytes: number } | { problem: SizeProblem } {
  if (text === '') return { sizeBytes: 0 };
  const match = /^(\d+)\s*([A-Za-z]*)\s*$/.exec(text);
  if (match === null) return { problem: 'syntax' };
  const [, digits = '', unit = ''] = match;
  if (/^[KMGTPE]b$/.test(unit)) return { problem: 'bits' };
  const power = SIZE_NAMES.findIndex((names) => names.includes(unit.toLowerCase()));
  if (power < 0) return { problem: 'syntax' };
  const size = BigInt(digits) * 1024n ** BigInt(power);
  return size > MAX_SIZE ? { problem: 'range' } : { sizeBytes: Number(size) };
}

/** In the largest unit that divides it: `1000MB`, `1GB`, `0B`; what {@link parseSize} reads back. */
export function formatSize(sizeBytes: number): string {
  let size = BigInt(sizeBytes);
  // 2^64 - 1 is read as the number 2^64, which is no size any more.
  if (size > MAX_SIZE) size = MAX_SIZE;
  let unit = 0;
  while (size > 0n && unit < SIZE_UNITS.length - 1 && size % 1024n === 0n) {
    size /= 1024n;
    unit += 1;
  }
  return `${size}${SIZE_UNITS[unit]}`;
}

/** For people: `36.0 KB`, `512 B`. */
export function humanSize(sizeBytes: number): string {
  let unit = 0;
  while (unit < SIZE_UNITS.length - 1 && sizeBytes > 1024 ** (unit + 1)) unit += 1;
  return unit === 0 ? `${sizeBytes} B` : `${(sizeBytes / 1024 ** unit).toFixed(1)} ${SIZE_UNITS[unit]}`;
}

const DBI_FLAGS: ReadonlyMap<string, number> = new Map([
  ['MDB_REVERSEKEY', 0x02],
  ['MDB_DUPSORT', 0x04],
  ['MDB_INTEGERKEY', 0x08],
  ['MDB_DUPFIXED', 0x10],
  ['MDB_INTEGERDUP', 0x20],
  ['MDB_REVERSEDUP', 0x40],
]);
const ALL_DBI_FLAGS = 0x7e;

/** Names of the persistent DBI flags, see lmdb.h. */
export const DBI_FLAG_NAMES: readonly string[] = [...DBI_FLAGS.keys()];

/** Names (`MDB_` may be left out, any case) and numbers, separated by `|`, `,`, `+` or spaces; undefined when one is no persistent flag. */
export function parseDbiFlags(text: string): number | undefined {
  let flags = 0;
  for (const part of text.toUpperCase().split(/[|,+\s]+/)) {
    if (part === '') continue;
    const flag =
      DBI_FLAGS.get(part) ??
      DBI_FLAGS.get(`MDB_${part}`) ??
      (/^(\d+|0X[0-9A-F]+)$/.test(part) ? Number(part) : undefined);
    if (flag === undefined || flag > ALL_DBI_FLAGS || (flag & ~ALL_DBI_FLAGS) !== 0) return undefined;
    flags |= flag;
  }
  return flags;
}

export function formatDbiFlags(flags: number): string {
  return [...DBI_FLAGS].flatMap(([name, bit]) => ((flags & bit) === 0 ? [] : [name])).join('|');
}
