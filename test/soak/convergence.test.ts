import { test } from 'vitest';
import { convergence } from '../e2e/convergence.ts';
import { newSeed } from '../e2e/helpers.ts';

const minutes = Number(process.env['SOAK_MINUTES'] || 30);
const kills = Number(process.env['SOAK_KILLS'] || Math.ceil((minutes * 200) / 30));

// Both at once would compete for the processors; each has half of the time.
for (const mode of ['native', 'shadow'] as const) {
  test(`three daemons, ${kills} kills in ${minutes} minutes, half of them in ${mode} mode`, () =>
    convergence({ seed: newSeed(), durationMs: minutes * 30_000, kills: Math.ceil(kills / 2), mode }));
}
