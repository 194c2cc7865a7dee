import { LightningStreamError } from '../errors.ts';

/** Everything that is wrong with a configuration; the message has one line per complaint. */
export class ConfigError extends LightningStreamError {
  /** `file:line:column: key: what is wrong`, in the order of the file. */
  readonly complaints: readonly string[];

  constructor(complaints: readonly string[]) {
    super('CONFIG', complaints.join('\n'));
    this.name = 'ConfigError';
    this.complaints = complaints;
  }
}
