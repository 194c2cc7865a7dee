/** Fields of a log line; values are printed as they are, errors by message and code, bigints in decimal. */
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
