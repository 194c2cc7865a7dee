import { describe, test } from 'vitest';
import { convergence } from './convergence.ts';
import { newSeed } from './helpers.ts';

const durationMs = Number(process.env['E2E_SECONDS'] || 6) * 1000;
const kills = Number(process.env['E2E_KILLS'] || 10);

for (const mode of ['native', 'shadow'] as const) {
  describe(`three daemons and three writers agree on the last writer, ${mode} mode`, () => {
    test(
      'undisturbed',
      () => convergence({ seed: newSeed(), durationMs, kills: 0, mode }),
      durationMs + 60_000,
    );

    test(
      `with ${kills} daemons killed and started again`,
      () => convergence({ seed: newSeed(), durationMs: durationMs * 1.5, kills, mode }),
      durationMs * 2 + 90_000,
    );
  });
}
