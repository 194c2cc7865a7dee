import { existsSync, globSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { expandEnvironment, parseConfig } from '../../../src/config/index.ts';
import { repositoryRoot } from '../../helpers/process.ts';

const documents = globSync(['*.md', 'docs/**/*.md'], { cwd: repositoryRoot }).sort();
const text = (document: string): string => readFileSync(join(repositoryRoot, document), 'utf8');

const blocks = documents.flatMap((document) =>
  [...text(document).matchAll(/^```yaml\n([^]*?)^```$/gm)].map((match) => ({
    name: `${document}:${text(document).slice(0, match.index).split('\n').length}`,
    yaml: match[1] ?? '',
  })),
);

describe('documents', () => {
  test('there is a config example', () => {
    expect(blocks.some(({ name }) => name.startsWith('README.md:'))).toBe(true);
  });

  test.each(blocks)('the config at $name is accepted without a warning', ({ name, yaml }) => {
    const { config, warnings } = parseConfig(expandEnvironment(yaml, {}), name);
    expect(config.lmdbs.size).toBeGreaterThan(0);
    expect(warnings).toEqual([]);
  });

  test.each(documents)('links in %s lead somewhere', (document) => {
    const targets = [...text(document).matchAll(/\]\((?!https?:)([^)#]+)[^)]*\)/g)].map(
      (match) => match[1] ?? '',
    );
    const missing = targets.filter((target) => !existsSync(join(repositoryRoot, dirname(document), target)));
    expect(missing).toEqual([]);
  });

  test('the README explains every health check there is', () => {
    const sources = globSync('src/{sync,cli}/**/*.ts', { cwd: repositoryRoot }).map(text).join('\n');
    const conditions = [...sources.matchAll(/\.condition\(\s*`\$\{[^}]*\}(_\w+)`/g)].map(
      (match) => match[1] ?? '',
    );
    const trackers = [...sources.matchAll(/\.failureTracker\(\s*`\$\{[^}]*\}(_\w+)`/g)].map(
      (match) => `${match[1] ?? ''}_failed_duration`,
    );
    expect(conditions.length).toBeGreaterThan(0);
    expect(trackers).toHaveLength(3);
    const readme = text('README.md');
    expect([...conditions, ...trackers].filter((name) => !readme.includes(`\`DB${name}\``))).toEqual([]);
  });

  test('the README explains every warning and error in the log of a sync', () => {
    const sources = globSync('src/sync/*.ts', { cwd: repositoryRoot }).map(text).join('\n');
    const lines = [...sources.matchAll(/\.(?:warning|error)\(\s*'([^']+)'/g)].map((match) => match[1] ?? '');
    expect(lines.length).toBeGreaterThan(5);
    const readme = text('README.md');
    expect([...new Set(lines)].filter((line) => !readme.includes(`\`${line}\``))).toEqual([]);
  });
});
