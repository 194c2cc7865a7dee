/**
 * docs/troubleshooting.md against the code, in both directions: what it quotes is really said, and what is said at the levels warning and
 * error, in health and about a failed request of S3, it explains.
 */
import { globSync, readFileSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { repositoryRoot } from '../../helpers/process.ts';

const read = (path: string): string => readFileSync(join(repositoryRoot, path), 'utf8');
const page = read('docs/troubleshooting.md');

/** The code without its comments, texts that span lines put together, and `…` for what is filled in. */
function sources(pattern: string): string {
  return globSync(pattern, { cwd: repositoryRoot })
    .sort()
    .map(read)
    .join('\n')
    .replace(/^\s*(\/\/|\/?\*).*$/gm, '')
    .replace(/(['"`])\s*\+\s*\n\s*(['"`])/g, '')
    .replace(/\\\n\s*/g, '')
    .replace(/\$\{(?:[^{}]|\{[^{}]*\})*\}/g, '…')
    .replace(/\\(['"`])/g, '$1');
}

const code = sources('src/**/*.ts');
const native = sources('native/core/src/**/*.rs');

interface Row {
  /** The heading of the first column. */
  readonly kind: string;
  /** That of the second one. */
  readonly second: string;
  readonly cells: readonly string[];
}

/** Rows of all tables; a cell may hold an escaped bar. */
function rowsOf(markdown: string): readonly Row[] {
  const rows: Row[] = [];
  let [kind, second] = ['', ''];
  for (const line of markdown.split('\n')) {
    if (!line.startsWith('|')) {
      kind = '';
      continue;
    }
    const cells = line
      .slice(1, -1)
      .split(' | ')
      .map((cell) => cell.replace(/^\||\|$/g, '').trim());
    if (kind === '') [kind = '', second = ''] = cells;
    else if (!/^-+$/.test(cells[0] ?? '')) rows.push({ kind, second, cells });
  }
  return rows;
}

const quotes = (cell = ''): readonly string[] =>
  [...cell.matchAll(/`([^`]+)`/g)].map(([, quote = '']) => quote);
/** Its lines of `migrate` are on the page about that. */
const pages = `${page}\n${read('docs/migration.md')}`;
const first = (kind: string): readonly string[] =>
  rowsOf(kind === 'line' ? pages : page).flatMap((row) => (row.kind === kind ? quotes(row.cells[0]) : []));

/** Each part between `…` stands in the code, but for the punctuation around what is filled in. */
function isSaid(quote: string): boolean {
  const parts = quote
    .split('…')
    .map((part, index, all) => {
      const left = index === 0 ? part : part.replace(/^[\s:"']+/, '');
      return index === all.length - 1 ? left : left.replace(/[\s:"']+$/, '');
    })
    .filter((part) => part !== '');
  return parts.join('').length >= 8 && parts.every((part) => code.includes(part) || native.includes(part));
}

describe('docs/troubleshooting.md', () => {
  const lines = first('line');

  test('there is something to look at', () => {
    expect(lines.length).toBeGreaterThan(80);
    expect(first('code').length).toBeGreaterThan(15);
    expect(first('check').length).toBeGreaterThan(8);
  });

  test.each(lines)('the program says: %s', (line) => {
    expect(isSaid(line)).toBe(true);
  });

  test('what nobody says is noticed', () => {
    expect(isSaid('Stored snapshots')).toBe(false);
    expect(isSaid('http.address: cannot listen on …: it is raining')).toBe(false);
    expect(isSaid('…')).toBe(false);
  });

  test('nothing is explained twice', () => {
    expect(lines.filter((line, index) => lines.indexOf(line) !== index)).toEqual([]);
  });

  test('the codes are ones that there are', () => {
    const inTexts = rowsOf(page).flatMap(({ second, cells }) =>
      second === 'code' ? quotes(cells[1]).filter((code) => /^[\w….]+$/.test(code)) : [],
    );
    const codes = [
      ...first('code'),
      ...inTexts.filter((text) => /^…?[A-Z][A-Z_]{3,}…?$|^[A-Z][a-z]+[A-Z]/.test(text)),
    ];
    const isWord = (name: string): boolean => new RegExp(`\\b${name}\\b`).test(code + native);
    const known = (name: string): boolean =>
      Object.hasOwn(constants.errno, name) || (name.includes('…') ? isSaid(name) : isWord(name));
    expect(codes.filter((name) => !known(name))).toEqual([]);
  });

  test('it has every warning and error of the log', () => {
    const said = [...code.matchAll(/\.(?:warning|error)\(\s*(['`])(.*?)\1[,)\s]/g)].map(
      ([, , text = '']) => text,
    );
    expect(said.length).toBeGreaterThan(35);
    const isExplained = (text: string): boolean =>
      lines.some((line) => text.replaceAll("'…'", '').trim().startsWith(line.replace(/…$/, '').trim()));
    expect([...new Set(said)].filter((text) => !isExplained(text))).toEqual([]);
  });

  test('it has every health check, and no other', () => {
    const conditions = [...code.matchAll(/\.condition\(\s*[`']…?(\w+)[`']/g)].map(([, name = '']) => name);
    const trackers = [...code.matchAll(/\.failureTracker\(\s*[`']…?(\w+)[`']/g)].map(
      ([, name = '']) => `${name}_failed_duration`,
    );
    expect(conditions.length).toBeGreaterThan(4);
    expect(trackers).toHaveLength(4);
    const names = [...conditions, ...trackers, '_startup_in_progress'].map((name) =>
      name.startsWith('_') ? `DB${name}` : name,
    );
    expect([...first('check')].sort()).toEqual([...new Set(names)].sort());
    expect(code).toContain('…_startup_in_progress');
  });

  test('it has every reason that a request of S3 fails for', () => {
    const [, explain = ''] =
      /\nfunction explain\(([^]*?)\n\}\n/.exec(sources('src/storage/s3/errors.ts')) ?? [];
    const reasons = [...explain.matchAll(/(?:return |\? |: )(['"`])([a-z].*?)\1(?=;|$|\n| *:)/gm)].map(
      ([, , text = '']) => text,
    );
    expect(reasons.length).toBeGreaterThan(25);
    const isExplained = (text: string): boolean =>
      lines.some((line) => text.includes(line.replace(/ …$/, '')));
    expect(reasons.filter((text) => !isExplained(text))).toEqual([]);
  });

  test('it has the exit codes that the program ends with', () => {
    const codes = rowsOf(page).flatMap(({ kind, cells }) =>
      kind === 'code' && /^\d+$/.test(cells[0] ?? '') ? [Number(cells[0])] : [],
    );
    const [, exit = ''] = /export const EXIT = \{([^}]*)\}/.exec(code) ?? [];
    expect(codes).toEqual([...exit.matchAll(/\d+/g)].map(([number]) => Number(number)));
  });
});
