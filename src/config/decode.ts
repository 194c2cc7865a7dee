import {
  Document,
  isMap,
  isScalar,
  isSeq,
  Scalar,
  stringify,
  type Node,
  type Pair,
  type ParsedNode,
  YAMLMap,
  YAMLSeq,
} from 'yaml';
import { MASK, isSecretKey, maskUrl } from './secrets.ts';
import { Place, Source, TAG, type Value } from './source.ts';
import {
  DBI_FLAG_NAMES,
  formatDbiFlags,
  formatDuration,
  formatSize,
  nsToMs,
  parseDbiFlags,
  parseDuration,
  parseSize,
} from './units.ts';

export { ConfigError } from './error.ts';
export { Place, Source } from './source.ts';

/**
 * A decoder for YAML by the type each key wants, strict, that gathers every complaint instead of stopping at the first.
 *
 * The text is parsed without any type (failsafe schema); what a scalar means is decided here, as the parser of Lightning
 * Stream 1.0 (yaml.v2) would: YAML 1.1 booleans and octal numbers, numbers and booleans never quoted, null = the type's zero,
 * merge keys applied where they stand, deep into sections. One table (`object`) names the keys, their types, defaults and checks; it
 * decodes to camelCase and encodes back for `--log-config`.
 */

/** Reads and writes one type of value. */
export interface Decoder<T> {
  /** The type and its limits in words, for the reference: `duration, at least 1s`. */
  readonly type: string;
  /** The key must appear, and not with its zero. */
  readonly required?: true;
  /** What stands inside of a section. */
  readonly inside?: Inside;
  /** The value when the key does not appear. */
  readonly absent: T;
  /** The value of an explicit null. */
  readonly zero: T;
  /**
   * The value of `values`, of which there are several when merge keys gave some: the last one counts, sections grow together.
   * What is wrong goes to `place`; the result is then meaningless.
   */
  read(values: readonly Value[], place: Place): T;
  /** The value as YAML, secrets masked; undefined leaves the key away. */
  encode(value: T): Node | undefined;
}

/** The keys of a section: known ones, or any, which the reference calls `name`. */
export type Inside =
  | { readonly fields: Readonly<Record<string, Field<unknown>>> }
  | { readonly each: Decoder<unknown>; readonly name: string };

/** The type a decoder gives. */
export type Decoded<D> = D extends Decoder<infer T> ? T : never;

// ---- scalars -------------------------------------------------------------------------------------------------------------------

interface ScalarOptions<T> {
  /** When the key does not appear; the type's zero if not given. */
  readonly default?: T;
  /** Complain when the key does not appear, or with its zero. */
  readonly required?: true;
  /** What is wrong with a well-formed value; undefined = nothing. Also called for the zero that null gives, not for the default. */
  readonly check?: (value: T) => string | undefined;
}

interface RangeOptions extends ScalarOptions<number> {
  readonly min?: number;
  readonly max?: number;
}

/** A scalar's text and whether it was quoted (or a block, or tagged !!str). */
interface Text {
  readonly text: string;
  readonly quoted: boolean;
}

interface ScalarSpec<T> {
  /** See {@link Decoder.type}. */
  readonly type: string;
  /** What is wanted, for `must be …`. */
  readonly what: string;
  readonly zero: T;
  readonly parse: (text: Text) => T | { readonly problem: string } | undefined;
  readonly format: (value: T) => string;
  /** Never show the value. */
  readonly secret?: boolean;
}

const NULLS: ReadonlySet<string> = new Set(['', '~', 'null', 'Null', 'NULL']);

function scalar<T extends string | number | boolean | undefined>(
  spec: ScalarSpec<T>,
  options: ScalarOptions<T>,
): Decoder<T> {
  const readOne = (value: Value, place: Place): T => {
    const node = place.source.resolve(value);
    const text = scalarText(node);
    if (text === null) return checked(spec.zero, node ?? value, place);
    if (text === undefined) {
      place.complain(node, `must be ${spec.what}, not a ${isSeq(node) ? 'list' : 'section'}`);
      return spec.zero;
    }
    const parsed = spec.parse(text);
    if (parsed === undefined || (typeof parsed === 'object' && 'problem' in parsed)) {
      const problem = parsed === undefined ? `must be ${spec.what}` : parsed.problem;
      place.complain(node, spec.secret === true ? problem : `${problem}, not ${shown(text)}`);
      return spec.zero;
    }
    return checked(parsed, node, place);
  };
  const checked = (value: T, node: Value, place: Place): T => {
    const problem = options.required === true && value === spec.zero ? 'must be set' : options.check?.(value);
    if (problem !== undefined) place.complain(node, problem);
    return value;
  };
  const absent = options.default ?? spec.zero;
  return {
    type: spec.type,
    ...(options.required === undefined ? {} : { required: options.required }),
    absent,
    zero: spec.zero,
    read(values, place) {
      if (values.length === 0) {
        if (options.required === true) place.complain(undefined, 'must be set');
        return absent;
      }
      let result = spec.zero;
      for (const value of values) result = readOne(value, place);
      return result;
    },
    encode(value) {
      if (value === undefined) return undefined;
      return plain(spec.secret === true && value !== '' ? MASK : spec.format(value));
    },
  };
}

/** Null for a YAML null, undefined for what is no scalar. */
function scalarText(node: Value): Text | null | undefined {
  if (node === null) return null;
  if (!isScalar(node)) return undefined;
  const text = typeof node.value === 'string' ? node.value : '';
  const quoted =
    node.tag === `${TAG}str` ||
    (node.tag === undefined && node.type !== undefined && node.type !== Scalar.PLAIN);
  return !quoted && NULLS.has(text) ? null : { text, quoted };
}

function shown({ text, quoted }: Text): string {
  const short = text.length > 40 ? `${text.slice(0, 40)}…` : text;
  return quoted ? JSON.stringify(short) : short.replace(/\s+/g, ' ');
}

/** A scalar node with this text, quoted only when a reader would else see a null or something that is no scalar. */
function plain(text: string): Scalar {
  const node = new Scalar(text);
  if (NULLS.has(text)) node.type = Scalar.QUOTE_DOUBLE;
  return node;
}

/** Text as written, unquoted numbers and booleans included. A secret is masked wherever it would be shown. */
export function str(options: ScalarOptions<string> & { readonly secret?: boolean } = {}): Decoder<string> {
  return scalar<string>(
    {
      type: options.secret === true ? 'text, secret' : 'text',
      what: 'a text',
      zero: '',
      parse: ({ text }) => text,
      format: maskUrl,
      ...(options.secret === undefined ? {} : { secret: options.secret }),
    },
    options,
  );
}

/** One of these words; `aliases` maps further ones (an empty text included), which win over words. */
export function oneOf<const T extends string>(
  words: readonly T[],
  options: {
    readonly default: NoInfer<T>;
    readonly ignoreCase?: true;
    readonly aliases?: Readonly<Record<string, NoInfer<T>>>;
  },
): Decoder<T> {
  const find = (written: string): T | undefined => {
    const text = options.ignoreCase === true ? written.toLowerCase() : written;
    return options.aliases?.[text] ?? words.find((word) => word === text);
  };
  const what = `one of (${words.join(', ')})`;
  const type = words.map((word) => `\`${word}\``).join(', ');
  const decoder = scalar<string>(
    { type, what, zero: '', parse: ({ text }) => find(text), format: (value) => value },
    {
      default: options.default,
      check: (value) => (find(value) === undefined ? `must be ${what}` : undefined),
    },
  );
  // Whatever `find` did not give has been complained about.
  return {
    ...decoder,
    absent: options.default,
    zero: (find('') ?? '') as T,
    read: (values, place) => {
      const word = decoder.read(values, place);
      return find(word) ?? options.default;
    },
    encode: (value) => plain(value),
  };
}

const TRUE = /^(y|Y|yes|Yes|YES|true|True|TRUE|on|On|ON)$/;
const FALSE = /^(n|N|no|No|NO|false|False|FALSE|off|Off|OFF)$/;

/** YAML 1.1: y, yes, on, true and their opposites, unquoted; never 0 or 1. */
export function bool(options: ScalarOptions<boolean> = {}): Decoder<boolean> {
  return scalar<boolean>(
    {
      type: 'boolean',
      what: 'true or false, unquoted',
      zero: false,
      parse: ({ text, quoted }) =>
        quoted ? undefined : TRUE.test(text) ? true : FALSE.test(text) ? false : undefined,
      format: String,
    },
    options,
  );
}

const INTEGER = /^([-+]?)(0x[0-9a-f]+|0b[01]+|0o?[0-7]+|0|[1-9][0-9]*)$/i;
const FLOAT = /^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)(e[-+]?[0-9]+)?$/i;

/** An unquoted number; `010` and `0o10` are octal, `1_000` is one thousand. */
function parseNumber({ text, quoted }: Text): number | undefined {
  if (quoted) return undefined;
  const digits = text.replaceAll('_', '');
  const integer = INTEGER.exec(digits);
  if (integer !== null) {
    const body = (integer[2] ?? '').toLowerCase();
    const value = Number(/^0[0-7]/.test(body) ? `0o${body}` : body);
    return integer[1] === '-' && value !== 0 ? -value : value;
  }
  return FLOAT.test(digits) ? Number(digits) : undefined;
}

function limited(type: string, { min, max }: RangeOptions, format: (value: number) => string): string {
  const limits = [
    // That a number is not negative goes without saying.
    ...(min === undefined || min === 0 ? [] : [`at least ${format(min)}`]),
    ...(max === undefined ? [] : [`at most ${format(max)}`]),
  ];
  return [type, ...limits].join(', ');
}

function inRange(options: RangeOptions, format: (value: number) => string): ScalarOptions<number> {
  const check = (value: number): string | undefined => {
    if (options.min !== undefined && value < options.min)
      return `must be at least ${format(options.min)}, not ${format(value)}`;
    if (options.max !== undefined && value > options.max)
      return `must be at most ${format(options.max)}, not ${format(value)}`;
    return options.check?.(value);
  };
  return { ...options, check };
}

/** An unquoted whole number; a fraction is cut off, as Lightning Stream does. */
export function int(options: RangeOptions = {}): Decoder<number> {
  return scalar<number>(
    {
      type: limited('whole number', options, String),
      what: 'a whole number, unquoted',
      zero: 0,
      parse: (text) => {
        const value = parseNumber(text);
        return value === undefined || !Number.isSafeInteger(Math.trunc(value))
          ? undefined
          : Math.trunc(value) + 0;
      },
      format: String,
    },
    inRange(options, String),
  );
}

/** An unquoted number. */
export function float(options: RangeOptions = {}): Decoder<number> {
  return scalar<number>(
    {
      type: limited('number', options, String),
      what: 'a number, unquoted',
      zero: 0,
      parse: (text) => {
        const value = parseNumber(text);
        return value === undefined || !Number.isFinite(value) ? undefined : value;
      },
      format: String,
    },
    inRange(options, String),
  );
}

/** Milliseconds from Go's syntax; a bare number is nanoseconds. `min`, `max` and `default` are ms. */
export function duration(options: RangeOptions = {}): Decoder<number> {
  return scalar<number>(
    {
      type: limited('duration', options, formatDuration),
      what: 'a duration like 300ms, 5s or 1h30m',
      zero: 0,
      parse: (text) => {
        const ns = parseNumber(text);
        if (ns === undefined) return parseDuration(text.text);
        return Math.abs(ns) < 2 ** 63 ? nsToMs(BigInt(Math.trunc(ns))) : undefined;
      },
      format: formatDuration,
    },
    inRange(options, formatDuration),
  );
}

/** Bytes from `1GB`, `64KB`, `100`, … `min`, `max` and `default` are bytes. */
export function size(options: RangeOptions = {}): Decoder<number> {
  return scalar<number>(
    {
      type: limited('size', options, formatSize),
      what: 'a size like 100MB or 1GB',
      zero: 0,
      parse: ({ text }) => {
        const parsed = parseSize(text);
        if ('sizeBytes' in parsed) return parsed.sizeBytes;
        if (parsed.problem === 'bits') return { problem: 'must be in bytes (KB, MB, GB …; b would be bits)' };
        if (parsed.problem === 'range') return { problem: 'must be less than 16EB' };
        return undefined;
      },
      format: formatSize,
    },
    inRange(options, formatSize),
  );
}

const MODE_MAX = 0o777;

/** A file mode, octal with a leading zero; 0 means the default. */
export function mode(options: { readonly default: number }): Decoder<number> {
  const decoder = scalar<number>(
    {
      type: 'file mode',
      what: 'a file mode like 0664, unquoted',
      zero: 0,
      parse: (text) => {
        const value = parseNumber(text);
        return value === undefined || value < 0 || !Number.isSafeInteger(Math.trunc(value))
          ? undefined
          : Math.trunc(value);
      },
      format: (value) => `0${value.toString(8)}`,
    },
    {
      ...options,
      check: (value) =>
        value > MODE_MAX
          ? `must be at most 0777: this is decimal ${value}, octal 0${value.toString(8)}; octal numbers begin with 0`
          : undefined,
    },
  );
  return zeroIsDefault(decoder);
}

/** For keys where zero means "not set". */
export function zeroIsDefault<T>(decoder: Decoder<T>): Decoder<T> {
  return {
    ...decoder,
    zero: decoder.absent,
    read: (values, place) => {
      const value = decoder.read(values, place);
      return value === decoder.zero ? decoder.absent : value;
    },
  };
}

/** Persistent DBI flags by name or number; undefined when absent or null. */
export function dbiFlags(): Decoder<number | undefined> {
  return scalar<number | undefined>(
    {
      type: 'DBI flags',
      what: `flags of a DBI (${DBI_FLAG_NAMES.join(', ')})`,
      zero: undefined,
      parse: ({ text }) => parseDbiFlags(text),
      format: (value) => formatDbiFlags(value ?? 0),
    },
    {},
  );
}

/** For a key that is still read but no longer shown. */
export function deprecated<T>(decoder: Decoder<T>): Decoder<T> {
  return { ...decoder, read: (values, place) => decoder.read(values, place), encode: () => undefined };
}

/** Anything that is written as one word; `parse` gives undefined for what it does not know. */
export function word<T extends string | number>(spec: {
  readonly what: string;
  readonly default: T;
  readonly parse: (text: string) => T | undefined;
}): Decoder<T> {
  return scalar<T>(
    {
      type: spec.what,
      what: spec.what,
      zero: spec.default,
      parse: ({ text }) => spec.parse(text),
      format: String,
    },
    spec,
  );
}

// ---- sections ------------------------------------------------------------------------------------------------------------------

interface Entry {
  readonly key: Node;
  readonly values: Value[];
}

/** The pairs of a section in the order they apply; null when the last thing said about it is null. */
function entries(
  values: readonly Value[],
  place: Place,
): { readonly map: Map<string, Entry>; readonly isNull: boolean; readonly isSection: boolean } {
  const map = new Map<string, Entry>();
  let isNull = false;
  let isSection = true;
  const add = (value: Value): void => {
    const node = place.source.resolve(value);
    if (scalarText(node) === null) {
      map.clear();
      isNull = true;
    } else if (isMap(node)) {
      addPairs(node);
    } else {
      isSection = false;
      place.complain(
        node,
        `must be a section of "key: value" lines, not a ${isSeq(node) ? 'list' : 'single value'}`,
      );
    }
  };
  const addPairs = (node: YAMLMap): void => {
    const seen = new Map<string, Node>();
    for (const pair of node.items as Pair<ParsedNode, ParsedNode | null>[]) {
      const key = place.source.resolve(pair.key);
      if (!isScalar(key) || typeof key.value !== 'string') {
        place.complain(pair.key, 'a key must be a single word');
        continue;
      }
      const name = key.value;
      if (name === '<<' && key.type === Scalar.PLAIN) {
        addMerged(pair.value ?? key);
        continue;
      }
      const first = seen.get(name);
      if (first !== undefined) {
        place
          .child(name, node)
          .complain(pair.key, `duplicate key, already set in line ${place.source.lineOf(first)}`);
        continue;
      }
      seen.set(name, pair.key);
      const entry = map.get(name);
      if (entry === undefined) map.set(name, { key: pair.key, values: [pair.value] });
      else entry.values.push(pair.value);
    }
  };
  const addMerged = (value: Node): void => {
    const node = place.source.resolve(value);
    // In a list the first one wins: it is applied last.
    const parts = isSeq(node)
      ? (node.items as Node[]).toReversed().map((item) => place.source.resolve(item))
      : [node];
    for (const part of parts) {
      if (isMap(part)) addPairs(part);
      else place.complain(value, 'a merge key (<<) needs a section or a list of sections');
    }
  };
  for (const value of values) add(value);
  return { map, isNull, isSection };
}

/** One row of an `object` table. */
export interface Field<T> {
  readonly key: string;
  readonly decoder: Decoder<T>;
  /** What the key means, for the reference: Markdown without lists or tables. Sections have none. */
  readonly text: string;
}

/** Names the key under which a property stands in the file, and says what it means. */
export function key<T>(name: string, decoder: Decoder<T>, text = ''): Field<T> {
  return { key: name, decoder, text };
}

type Fields = Readonly<Record<string, Field<unknown>>>;
type FieldValues<F extends Fields> = { readonly [K in keyof F]: F[K] extends Field<infer T> ? T : never };

/** The table decoded, and the table itself. */
export interface ObjectDecoder<F extends Fields> extends Decoder<FieldValues<F>> {
  readonly fields: F;
  encode(value: FieldValues<F>): Node;
}

/**
 * A section with exactly these keys, read into the properties of `fields`.
 * `check` sees the whole section when nothing was wrong with its keys; `complain` takes the key that is to be named.
 */
export function object<const F extends Fields>(
  fields: F,
  options: {
    readonly check?: (value: FieldValues<F>, complain: (key: string, text: string) => void) => void;
  } = {},
): ObjectDecoder<F> {
  const rows = Object.entries(fields);
  const known = rows.map(([, field]) => field.key);
  const build = (valueOf: (field: Field<unknown>) => unknown): FieldValues<F> =>
    Object.fromEntries(rows.map(([property, field]) => [property, valueOf(field)])) as FieldValues<F>;
  const absent = build(({ decoder }) => decoder.absent);
  return {
    type: 'section',
    inside: { fields },
    fields,
    absent,
    zero: build(({ decoder }) => decoder.zero),
    read(values, place) {
      const before = place.source.complaintCount;
      const { map, isNull, isSection } = entries(values, place);
      if (!isSection) return absent;
      const section = values.findLast((value) => value !== null) ?? place.section;
      if (isNull && place.path !== '' && map.size === 0) {
        const text = `${place.path}: is empty, which sets all its keys to zero instead of their defaults; remove the key`;
        place.source.warnings.push(text);
      }
      for (const [name, entry] of map)
        if (!known.includes(name)) place.child(name, null).complain(entry.key, unknownKey(name, known));
      const result = build((field) => {
        const given = map.get(field.key)?.values ?? (isNull ? [null] : []);
        return field.decoder.read(given, place.child(field.key, section));
      });
      if (options.check !== undefined && place.source.complaintCount === before) {
        options.check(result, (name, text) => {
          place.child(name, section).complain(map.get(name)?.values.at(-1), text);
        });
      }
      return result;
    },
    encode(value) {
      const node = new YAMLMap();
      for (const [property, field] of rows) {
        const encoded = field.decoder.encode(value[property]);
        if (encoded !== undefined) node.set(plain(field.key), encoded);
      }
      return node;
    },
  };
}

/** `unknown key`, with the likeliest meaning. */
function unknownKey(name: string, known: readonly string[]): string {
  const similar = known.find(
    (candidate) => candidate.length > 2 && distance(name, candidate) <= (candidate.length < 4 ? 1 : 2),
  );
  if (similar !== undefined) return `unknown key: did you mean ${similar}?`;
  return known.length <= 8 ? `unknown key: known here are ${known.join(', ')}` : 'unknown key';
}

/** Levenshtein. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i += 1) {
    const next = [i];
    for (let j = 1; j <= b.length; j += 1) {
      const replaced = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min((row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1, replaced));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}

/** A section with any keys, each with a value of one type, in the order of the file. */
export function map<T>(
  decoder: Decoder<T>,
  options: {
    /** What the reference calls a key; `NAME` by default. */
    readonly name?: string;
    readonly required?: string;
    readonly checkKey?: (name: string) => string | undefined;
  } = {},
): Decoder<ReadonlyMap<string, T>> {
  const none: ReadonlyMap<string, T> = new Map();
  return {
    type: 'section',
    inside: { each: decoder, name: options.name ?? 'NAME' },
    absent: none,
    zero: none,
    read(values, place) {
      const before = place.source.complaintCount;
      const found = entries(values, place).map;
      if (options.required !== undefined && found.size === 0 && place.source.complaintCount === before) {
        place.complain(values.at(-1) ?? undefined, options.required);
      }
      const result = new Map<string, T>();
      for (const [name, entry] of found) {
        const problem = options.checkKey?.(name);
        if (problem !== undefined) place.child(name, null).complain(entry.key, problem);
        // Unlike sections, values do not grow together: a merge key gives whole values.
        result.set(name, decoder.read(entry.values.slice(-1), place.child(name, entry.key)));
      }
      return result;
    },
    encode(value) {
      const node = new YAMLMap();
      for (const [name, item] of value) {
        const encoded = decoder.encode(item);
        if (encoded !== undefined) node.set(plain(name), encoded);
      }
      return node;
    },
  };
}

export function list<T>(decoder: Decoder<T>): Decoder<readonly T[]> {
  const none: readonly T[] = [];
  return {
    type: 'list',
    absent: none,
    zero: none,
    read(values, place) {
      const value = values.at(-1);
      const node = place.source.resolve(value ?? null);
      if (scalarText(node) === null) return none;
      if (!isSeq(node)) {
        place.complain(node, 'must be a list');
        return none;
      }
      return node.items.map((item, index) =>
        decoder.read([item as Node], new Place(place.source, `${place.path}[${index}]`, node)),
      );
    },
    encode(value) {
      const node = new YAMLSeq();
      for (const item of value) {
        const encoded = decoder.encode(item);
        if (encoded !== undefined) node.add(encoded);
      }
      return node;
    },
  };
}

// ---- options that somebody else decodes later ----------------------------------------------------------------------------------

/** A section of the file, kept with its positions. */
export interface Undecoded {
  readonly values: readonly Value[];
  readonly place: Place;
}

/** The section with one more key, which wins over an older one. */
export function withOption(options: Undecoded, name: string, value: string): Undecoded {
  const section = new YAMLMap();
  section.set(plain(name), plain(value));
  return { ...options, values: [...options.values, section] };
}

function isUndecoded(options: unknown): options is Undecoded {
  return (
    typeof options === 'object' && options !== null && 'place' in options && options.place instanceof Place
  );
}

/** A section that is only checked to be one; {@link decodeOptions} does the rest. */
export function later(): Decoder<Undecoded> {
  const none: Undecoded = undecoded(undefined);
  return {
    type: 'section',
    absent: none,
    zero: none,
    read(values, place) {
      entries(values, place);
      return { values, place };
    },
    encode: (value) => encodeUnknown(value, () => undefined),
  };
}

/**
 * Decodes what stands under `storage.options`: `options` is `StorageConfig.options`, or plain data for programs and tests.
 * @throws {@link ConfigError} with every complaint
 */
export function decodeOptions<T>(options: unknown, decoder: Decoder<T>): T {
  const { values, place } = isUndecoded(options) ? options : undecoded(options);
  const result = decoder.read(values, place);
  place.source.throwComplaints();
  return result;
}

function undecoded(options: unknown): Undecoded {
  const source = Source.parse(options === undefined || options === null ? '' : stringify(options), 'options');
  return {
    values: source.root === null ? [] : [source.root],
    place: new Place(source, 'storage.options', null),
  };
}

/** The secrets in a section, so that they can be masked wherever else they turn up. */
export function secretsOf(options: Undecoded): readonly string[] {
  const secrets: string[] = [];
  encodeUnknown(options, (value) => secrets.push(value));
  return secrets;
}

/** As written, with everything masked that a name or a URL gives away as a secret. */
function encodeUnknown({ values, place }: Undecoded, onSecret: (value: string) => void): Node {
  const source = place.source;
  const encodeNode = (given: Value, secret: boolean): Node => {
    const node = source.resolve(given);
    if (isMap(node)) return encodeEntries([node], secret);
    if (isSeq(node)) {
      const copy = new YAMLSeq();
      for (const item of node.items) copy.add(encodeNode(item as Node, secret));
      return copy;
    }
    const text = scalarText(node);
    if (text === null || text === undefined) return new Scalar('');
    if (secret && text.text !== '') {
      onSecret(text.text);
      return plain(MASK);
    }
    const copy = plain(maskUrl(text.text));
    if (text.quoted) copy.type = Scalar.QUOTE_DOUBLE;
    return copy;
  };
  const encodeEntries = (nodes: readonly Value[], secret: boolean): YAMLMap => {
    const copy = new YAMLMap();
    for (const [name, entry] of entries(nodes, place).map)
      copy.set(plain(name), encodeNode(entry.values.at(-1) ?? null, secret || isSecretKey(name)));
    return copy;
  };
  return encodeEntries(values, false);
}

/** The YAML text of an encoded value; it reads back to the same, masked secrets apart. */
export function toYaml(node: Node): string {
  const document = new Document(undefined, { schema: 'failsafe' });
  document.contents = node as never;
  return document.toString({ lineWidth: 0 });
}
