import { type LoadedConfig, loadConfig } from '../config/index.ts';
import type { Config } from '../config/types.ts';
import { createLogger, type RootLogger } from '../observability/logger.ts';
import { type Io, print } from './io.ts';
import type { GlobalOptions } from './program.ts';

/** What a command works with. */
export interface Session {
  readonly io: Io;
  readonly config: Config;
  /** The configuration's path, for messages that say what to change. */
  readonly configFile: string;
  /** What is doubtful in the configuration, one line each; the log has it. */
  readonly warnings: readonly string[];
  /** Writes to standard error. */
  readonly logger: RootLogger;
  /** Aborted by the user or by `--timeout`. */
  readonly signal: AbortSignal;
}

/** Loads the configuration with the flags' changes and tells about it. @throws ConfigError */
export async function openSession(io: Io, globals: GlobalOptions, signal: AbortSignal): Promise<Session> {
  const loaded = load(io, globals);
  const { config } = loaded;
  const logger = createLogger(config.log, io.stderr, { journal: io.journal === true });
  logger.addSecrets(loaded.secrets);
  io.onSecrets?.((text) => logger.mask(text));
  for (const warning of loaded.warnings) logger.warning(warning);
  if (globals.logConfig === true) await print(io.stdout, loaded.effective());
  return { io, config, configFile: globals.config, warnings: loaded.warnings, logger, signal };
}

function load(io: Io, globals: GlobalOptions): LoadedConfig {
  const level = globals.debug === true ? 'debug' : globals.logLevel;
  return loadConfig({
    file: globals.config,
    env: io.env,
    overrides: {
      // As in Lightning Stream an empty name is none, so that a script may pass an unset variable.
      ...(globals.instance === undefined || globals.instance === '' ? {} : { instance: globals.instance }),
      log: {
        ...(level === undefined ? {} : { level }),
        ...(globals.logFormat === undefined ? {} : { format: globals.logFormat }),
        ...(globals.logTimestamp === undefined ? {} : { timestamp: globals.logTimestamp }),
      },
    },
  });
}
