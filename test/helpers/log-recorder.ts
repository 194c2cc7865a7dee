import { Writable } from 'node:stream';
import { createLogger, type Logger } from '../../src/observability/logger.ts';

/** A real logger of all levels whose lines a test can look at. */
export function recordLog(): { readonly logger: Logger; text(): string } {
  let text = '';
  const stream = new Writable({
    write: (chunk: Buffer, _encoding, done) => {
      text += chunk.toString();
      done();
    },
  });
  const logger = createLogger({ level: 'trace', format: 'logfmt', timestamp: 'disable' }, stream);
  return { logger, text: () => text };
}
