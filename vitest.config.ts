import { defineConfig } from 'vitest/config';

// Forks, not threads: a test that loads the addon or sets the environment has a process of its own.
export default defineConfig({
  test: {
    pool: 'forks',
    allowOnly: !process.env['CI'],
    passWithNoTests: false,
    restoreMocks: true,
    projects: [
      project('unit', 'test/unit/**/*.test.ts', 10_000),
      project('golden', 'test/golden/**/*.test.ts', 60_000),
      // Its tests mostly wait for daemons. Projects with numbers of workers of their own run one after the other.
      project('e2e', 'test/e2e/**/*.test.ts', 120_000, { maxWorkers: 2, sequence: { groupOrder: 1 } }),
      // After those: machines, and a program with little memory and processor time.
      project('packages', 'test/packages/**/*.test.ts', 300_000, {
        maxWorkers: 2,
        sequence: { groupOrder: 2 },
      }),
      project('soak', 'test/soak/**/*.test.ts', 7_200_000),
    ],
  },
});

/** The time limit catches a hang; a test that waits for a condition brings its own, shorter deadline. */
function project(
  name: string,
  include: string,
  testTimeout: number,
  more: { readonly maxWorkers?: number; readonly sequence?: { readonly groupOrder: number } } = {},
) {
  return {
    extends: true as const,
    test: {
      name,
      include: [include],
      testTimeout,
      hookTimeout: testTimeout,
      teardownTimeout: 10_000,
      ...more,
    },
  };
}
