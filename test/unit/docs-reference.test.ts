import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { MANUAL_PAGES, manualPage } from '../../build/manual.ts';
import { commands, configKeys, fill, PAGES } from '../../build/reference.ts';
import { repositoryRoot } from '../helpers/process.ts';

const text = (page: string): string => readFileSync(join(repositoryRoot, page), 'utf8');

describe('reference', () => {
  test.each(PAGES)('%s is what the definitions make of it (else: make docs)', (page) => {
    expect(text(page)).toBe(fill(text(page)));
  });

  test('each key says what it means', () => {
    expect(configKeys().filter((key) => key.text === '' || key.type === '')).toEqual([]);
  });

  test('the types tell the limits', () => {
    const types = new Map(configKeys().map(({ path, type }) => [path, type]));
    expect(types.get('lmdb_poll_interval')).toBe('duration, at least 100ms');
    expect(types.get('storage_retry_count')).toBe('whole number, at least 1');
    expect(types.get('log.format')).toBe('`human`, `logfmt`, `json`');
  });

  test('each command has its part, once', () => {
    const described = [...text('docs/commands.md').matchAll(/^<!-- command: (.*) -->$/gm)].map(
      ([, name]) => name,
    );
    // A group has nothing to tell beyond its commands, and help only repeats them.
    const expected = commands()
      .filter(({ path, children }) => children.length === 0 && !/\bhelp$/.test(path))
      .map(({ path }) => path);
    const sorted = (names: readonly (string | undefined)[]): unknown =>
      names.toSorted((a = '', b = '') => a.localeCompare(b));
    expect(sorted(described)).toEqual(sorted(['lightningstream', ...expected]));
  });

  test('a part that names what there is not is an error', () => {
    expect(() => fill('<!-- keys: lmdb -->\n<!-- end -->')).toThrow('there is no key lmdb');
    expect(() => fill('<!-- command: synk -->\n<!-- end -->')).toThrow('there is no command synk');
  });
});

describe('manual pages', () => {
  test.each(MANUAL_PAGES)('$name($section) says all that its page says', (page) => {
    const roff = manualPage(page, text(page.source));
    const headings = [...text(page.source).matchAll(/^##+ (.*)$/gm)].map(([, heading = '']) => heading);
    for (const heading of headings)
      expect(roff.toLowerCase()).toMatch(
        new RegExp(`^\\.s[hs] ${heading.toLowerCase().replaceAll('-', '\\\\-')}$`, 'm'),
      );
    const rows = text(page.source)
      .split('\n')
      .filter((line) => line.startsWith('| `'));
    expect(rows.length).toBeGreaterThan(20);
    expect(roff.split('\n').filter((line) => line === '.TP').length).toBeGreaterThanOrEqual(rows.length);
    // What Markdown would have shown differently.
    expect(roff).not.toMatch(/`|\*\*|\]\(|<!--/);
  });

  const groff = spawnSync('groff', ['--version']).status === 0;
  test.skipIf(!groff).each(MANUAL_PAGES)('$name($section) is man(7) without a warning [groff]', (page) => {
    const { status, stdout, stderr } = spawnSync('groff', ['-man', '-ww', '-Tutf8', '-Kutf8'], {
      input: manualPage(page, text(page.source)),
      encoding: 'utf8',
    });
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(stdout.length).toBeGreaterThan(5000);
  });
});
