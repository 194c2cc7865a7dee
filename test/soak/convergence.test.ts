import { test } from 'vitest';
import { convergence } from '../e2e/convergence.ts';
import { newSeed } from '../e2e/helpers.ts';

const minutes = Number(process.env['SOAK_MINUTES'] || 30);
const kills = Number(process.env['SOAK_KILLS'] || Math.ceil((minutes * 200) / 30));

test(`three daemons, ${kills} kills in ${minutes} minutes`, () =>
  convergence({ seed: newSeed(), durationMs: minutes * 60_000, kills }));
