import { ConfigError } from '../config/decode.ts';
import type { Config } from '../config/types.ts';

/** A feature that a configuration may ask for and this version does not have. */
interface Missing {
  readonly what: string;
  /** Keys that ask for it. */
  readonly keys: (config: Config) => readonly string[];
  /** What to do about such a key. */
  readonly instead: string;
}

/** One entry per feature; it goes when the feature comes. */
const missing: readonly Missing[] = [
  {
    what: 'Azure storage',
    keys: ({ storage }) => (storage.type === 'azure' ? ['storage.type'] : []),
    instead: 'use fs or s3',
  },
];

/** @throws {@link ConfigError} with a line for each key that asks for what is not there. */
export function refuseMissingFeatures(config: Config, configFile: string): void {
  const complaints = missing.flatMap(({ what, keys, instead }) =>
    keys(config).map((key) => `${configFile}: ${key}: ${what} is not built yet in this version: ${instead}`),
  );
  if (complaints.length > 0) throw new ConfigError(complaints);
}
