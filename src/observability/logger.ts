import { Writable } from 'node:stream';
import { errorMessage, LightningStreamError } from '../errors.ts';
import type { LogConfig, LogLevel } from '../config/types.ts';
import { escapeControls, formatHuman, formatLogfmt, type LogLine } from './log-format.ts';
import { journalPrefix } from './journal.ts';
import { createSecretMask } from './secrets.ts';

/**
 * Fields of a log line: values are printed as they are, bigints in decimal, errors by message and code. The own fields of a
 * {@link LightningStreamError} become fields of the line. `undefined` is left out.
 */
export type LogFields = Readonly<Record<string, unknown>>;

/** What the program logs with. A child adds fields; `db` becomes the `[db]` prefix of the human format. */
export interface Logger {
  trace(message: string, fields?: LogFields): void;
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warning(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
  /** The last line before the program ends; it ends nothing itself. */
  fatal(message: string, fields?: LogFields): void;
  child(fields: LogFields): Logger;
}

/** The logger that all others are children of. */
export interface RootLogger extends Logger {
  /** From now on these are masked wherever they occur in a line of this logger or its children. */
  addSecrets(values: Iterable<string>): void;
  /** The same masking for what is shown elsewhere (pages, messages to the terminal). */
  mask(text: string): string;
  /** Resolves when everything written so far has left the process. */
  flush(): Promise<void>;
}

export interface LoggerOptions {
  /** Colours in the human format; as the stream is a terminal or not when absent. */
  readonly colors?: boolean;
  /** Each line begins with its level as systemd's journal wants it. */
  readonly journal?: boolean;
  /** The clock, milliseconds since the epoch. */
  readonly now?: () => number;
}

/** Names are those that the reference prints. */
const LEVELS: Readonly<Record<LogLevel, number>> = {
  trace: 10,
  debug: 20,
  info: 30,
  warning: 40,
  error: 50,
  fatal: 60,
};

const MAX_DEPTH = 8;

/**
 * Creates the program's logger: one line per event on `stream`, whatever the event holds. `json` and `logfmt` carry UTC times
 * in RFC 3339; in the human format `short` is the time of day. `disable` leaves the time out.
 */
export function createLogger(
  config: LogConfig,
  stream: { write(text: string): unknown },
  options: LoggerOptions = {},
): RootLogger {
  const now = options.now ?? Date.now;
  const colors = options.colors ?? ('isTTY' in stream && stream.isTTY === true);
  const secrets = createSecretMask();
  const withStacks = LEVELS[config.level] <= LEVELS.debug;

  // A reader of the log that went away must not stop the program.
  if (stream instanceof Writable) stream.on('error', () => undefined);

  function render(json: string): string {
    if (config.format === 'json') return `${escapeControls(json)}\n`;
    const line = JSON.parse(json) as LogLine;
    return config.format === 'logfmt'
      ? formatLogfmt(line)
      : formatHuman(line, { colors, shortTime: config.timestamp === 'short' });
  }

  /** A copy that JSON can hold, without secrets. */
  function clean(value: unknown, depth = 0): unknown {
    if (typeof value === 'string') return secrets.mask(value);
    if (typeof value === 'bigint') {
      return Number.isSafeInteger(Number(value)) ? Number(value) : value.toString();
    }
    if (typeof value === 'number') return Number.isFinite(value) ? value : String(value);
    if (typeof value === 'boolean' || value === null) return value;
    if (value instanceof Error) return secrets.mask(describeError(value));
    if (value instanceof Date) return Number.isNaN(value.getTime()) ? String(value) : value.toISOString();
    if (value instanceof Uint8Array) return Buffer.from(value).toString('hex');
    if (typeof value === 'symbol' || typeof value === 'function') return typeof value;
    if (typeof value !== 'object') return undefined;
    if (depth >= MAX_DEPTH) return '…';
    if (Array.isArray(value)) return value.map((item: unknown) => clean(item, depth + 1));
    if (value instanceof Set) return [...value].map((item: unknown) => clean(item, depth + 1));
    const entries: [string, unknown][] =
      value instanceof Map
        ? [...value].map(([key, item]: [unknown, unknown]) => [String(key), item])
        : Object.entries(value);
    return Object.fromEntries(entries.map(([key, item]) => cleanField(key, item, depth + 1)));
  }

  function cleanField(key: string, value: unknown, depth = 0): [string, unknown] {
    const name = secrets.mask(key);
    if (value === undefined) return [name, undefined];
    return [name, secrets.isSecretName(key) ? '***' : clean(value, depth)];
  }

  function write(level: LogLevel, message: string, fields: LogFields): void {
    if (LEVELS[level] < LEVELS[config.level]) return;
    const line: Record<string, unknown> = { level };
    if (config.timestamp !== 'disable') line['time'] = new Date(now()).toISOString();
    function add(key: string, value: unknown): void {
      const [name, cleaned] = cleanField(key, value);
      // A field must not take the place of what every line has.
      line[name === 'level' || name === 'msg' || name === 'time' ? `fields.${name}` : name] = cleaned;
    }
    for (const [key, value] of Object.entries(fields)) {
      if (!(value instanceof Error)) continue;
      if (value instanceof LightningStreamError) {
        for (const [name, fact] of Object.entries(value.fields)) add(name, fact);
      } else if (withStacks && value.stack !== undefined) {
        // Not one of ours: a bug, and this is where.
        add(`${key}_stack`, value.stack);
      }
    }
    for (const [key, value] of Object.entries(fields)) add(key, value);
    line['msg'] = secrets.mask(message);
    const prefix = options.journal === true ? journalPrefix(level) : '';
    stream.write(`${prefix}${render(JSON.stringify(line))}`);
  }

  function bind(bound: LogFields): Logger {
    const log =
      (level: LogLevel) =>
      (message: string, fields?: LogFields): void =>
        write(level, message, { ...bound, ...fields });
    return {
      trace: log('trace'),
      debug: log('debug'),
      info: log('info'),
      warning: log('warning'),
      error: log('error'),
      fatal: log('fatal'),
      child: (fields) => bind({ ...bound, ...fields }),
    };
  }

  return {
    ...bind({}),
    addSecrets: (values) => secrets.add(values),
    mask: (text) => secrets.mask(text),
    async flush() {
      if (!(stream instanceof Writable) || stream.destroyed) return;
      await new Promise<void>((resolve) => stream.write('', () => resolve()));
    },
  };
}

/** Message and code; the code once, where the message does not already name it (`ENOENT: no such file …`). */
function describeError(error: Error): string {
  const message = errorMessage(error);
  const code = (error as { readonly code?: unknown }).code;
  return typeof code === 'string' && !message.includes(code) ? `${message} (${code})` : message;
}
