/** A line before it is formatted. */
export interface LogLine {
  readonly level: string;
  /** RFC 3339 in UTC; absent when times are off. */
  readonly time?: string;
  readonly msg: string;
  readonly [field: string]: unknown;
}

/** Terminal colours (ECMA-48 SGR). */
const COLORS: Readonly<Record<string, number>> = {
  trace: 90,
  debug: 90,
  info: 36,
  warning: 33,
  error: 31,
  fatal: 31,
};

/** What a terminal or a reader of lines could take for anything but text. */
// oxlint-disable-next-line no-control-regex -- control characters are what it looks for
const UNPRINTABLE = /[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g;

/** `12:34:56.789Z INFO    [main] Message field=value …` */
export function formatHuman(
  line: LogLine,
  options: { readonly colors: boolean; readonly shortTime: boolean },
): string {
  const { level, time, msg, db, ...fields } = line;
  const paint = (code: number, text: string): string =>
    options.colors ? `\u001b[${code}m${text}\u001b[0m` : text;
  const color = COLORS[level] ?? 0;
  const parts = [paint(color, level.toUpperCase().padEnd(7))];
  if (time !== undefined) parts.unshift(options.shortTime ? time.slice(time.indexOf('T') + 1) : time);
  if (db !== undefined) parts.push(`[${escapeControls(text(db))}]`);
  parts.push(escapeControls(msg));
  for (const [name, value] of Object.entries(fields)) {
    parts.push(`${paint(color, escapeControls(name))}=${quoteIfNeeded(text(value))}`);
  }
  return `${parts.join(' ')}\n`;
}

/** `time=… level=… msg=…`, then the fields by name, quoted by the rule of the reference's log library (logrus). */
export function formatLogfmt(line: LogLine): string {
  const { level, time, msg, ...fields } = line;
  const pairs: [string, unknown][] = time === undefined ? [] : [['time', time]];
  pairs.push(['level', level], ['msg', msg], ...Object.entries(fields).sort(([a], [b]) => (a < b ? -1 : 1)));
  return `${pairs
    .map(([name, value]) => `${name.replace(/[^\w.@/+-]/g, '_') || '_'}=${quoteIfNeeded(text(value))}`)
    .join(' ')}\n`;
}

function text(value: unknown): string {
  return typeof value === 'string' ? value : JSON.stringify(value);
}

function quoteIfNeeded(value: string): string {
  return /^[A-Za-z0-9._/@^+-]*$/.test(value) ? value : escapeControls(JSON.stringify(value));
}

/** One line from any text; inside JSON the result is still the same JSON. */
export function escapeControls(value: string): string {
  return value.replace(UNPRINTABLE, (character) =>
    character === '\n' ? '\\n' : `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}
