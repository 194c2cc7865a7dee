/** What the benchmarks print, and the page they write it to. */
import { readFileSync, writeFileSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';
import { join } from 'node:path';
import { repositoryRoot } from '../helpers/process.ts';

/** When, which version, on what. */
export function machine(): string {
  const all = cpus();
  const date = new Date().toISOString().slice(0, 10);
  const { version } = JSON.parse(readFileSync(join(repositoryRoot, 'package.json'), 'utf8')) as {
    version: string;
  };
  return `${date}, version ${version}, Node.js ${process.version}; ${all.length} × ${all[0]?.model.trim() ?? '?'}, ${Math.round(totalmem() / 1024 ** 3)} GiB, Linux ${release()}.`;
}

/** A Markdown table; the first `textColumns` are aligned to the left. */
export function markdownTable(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  textColumns: number,
): string {
  const lines = [head, head.map((_, index) => (index < textColumns ? '---' : '--:')), ...rows];
  return lines.map((line) => `| ${line.join(' | ')} |\n`).join('');
}

/** Replaces what stands between `<!-- SECTION:begin -->` and `<!-- SECTION:end -->` in docs/performance.md. */
export function writeReport(section: string, text: string): void {
  const path = join(repositoryRoot, 'docs', 'performance.md');
  const page = readFileSync(path, 'utf8');
  const begin = `<!-- ${section}:begin -->`;
  const end = `<!-- ${section}:end -->`;
  if (!page.includes(begin) || !page.includes(end))
    throw new Error(`${path} has no place for the result: ${begin} … ${end}`);
  const head = page.slice(0, page.indexOf(begin) + begin.length);
  writeFileSync(path, `${head}\n\n${text}\n${page.slice(page.indexOf(end))}`);
}

/** Progress. */
export function say(text: string): void {
  process.stderr.write(`${text}\n`);
}
