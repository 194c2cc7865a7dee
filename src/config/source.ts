import {
  Document,
  isAlias,
  isScalar,
  LineCounter,
  parseAllDocuments,
  Scalar,
  visit,
  type Alias,
  type Node,
} from 'yaml';
import { ConfigError } from './error.ts';

/** A value in the file as decoders see it; null stands for a key with nothing behind it. */
export type Value = Node | null;

/** One parsed file and what there is to say about it. */
export class Source {
  readonly file: string;
  readonly root: Value;
  readonly warnings: string[] = [];
  readonly #document: Document.Parsed;
  readonly #lines: LineCounter;
  readonly #complaints: { offset: number; text: string }[] = [];

  private constructor(file: string, document: Document.Parsed, lines: LineCounter) {
    this.file = file;
    this.#document = document;
    this.#lines = lines;
    const root = document.contents;
    // A file of nothing but comments says nothing; it does not say null.
    this.root = isScalar(root) && root.value === '' && root.type === Scalar.PLAIN ? null : root;
  }

  /** Parses the first document of `text`. @throws {@link ConfigError} when it is no YAML. */
  static parse(text: string, file: string): Source {
    const lines = new LineCounter();
    const documents = parseAllDocuments(text, {
      schema: 'failsafe',
      lineCounter: lines,
      prettyErrors: false,
      uniqueKeys: false,
      logLevel: 'silent',
    });
    const first = Array.isArray(documents) ? documents[0] : undefined;
    const source = new Source(
      file,
      first ?? (new Document(undefined, { schema: 'failsafe' }) as Document.Parsed),
      lines,
    );
    if (first === undefined) return source;
    for (const error of first.errors)
      source.complain(error.pos[0], '', yamlProblem(error.code, error.message));
    source.#refuseOddNodes();
    source.throwComplaints();
    return source;
  }

  /** `at` is a node, a position in the text, or undefined when there is nothing to point at. */
  complain(at: Value | number | undefined, path: string, text: string): void {
    const offset = typeof at === 'number' ? at : at?.range?.[0];
    const { line, col } = this.#lines.linePos(offset ?? 0);
    const where = offset === undefined || line === 0 ? this.file : `${this.file}:${line}:${col}`;
    this.#complaints.push({
      offset: offset ?? 0,
      text: `${where}: ${path === '' ? '' : `${path}: `}${text}`,
    });
  }

  get complaintCount(): number {
    return this.#complaints.length;
  }

  /** @throws {@link ConfigError} when there were complaints since the last call. */
  throwComplaints(): void {
    if (this.#complaints.length === 0) return;
    const complaints = this.#complaints.splice(0).sort((a, b) => a.offset - b.offset);
    throw new ConfigError(complaints.map(({ text }) => text));
  }

  lineOf(node: Value): number {
    const offset = node?.range?.[0];
    return offset === undefined ? 0 : this.#lines.linePos(offset).line;
  }

  resolve(node: Value): Value {
    return isAlias(node) ? (node.resolve(this.#document) ?? null) : node;
  }

  /** Aliases that lead nowhere or into themselves, and tags that nobody decodes. */
  #refuseOddNodes(): void {
    visit(this.#document, {
      Alias: (_key, alias: Alias, ancestors) => {
        const target = alias.resolve(this.#document);
        if (target === undefined) this.complain(alias, '', 'alias without an anchor of that name before it');
        else if (ancestors.includes(target)) this.complain(alias, '', 'an anchor that contains itself');
      },
      Node: (_key, node: Node) => {
        if (!isAlias(node) && node.tag !== undefined && !KNOWN_TAGS.has(node.tag))
          this.complain(node, '', 'YAML tags like this one are not supported');
      },
    });
  }
}

/** Prefix of YAML's own tags. */
export const TAG = 'tag:yaml.org,2002:';
const KNOWN_TAGS: ReadonlySet<string> = new Set(
  ['str', 'int', 'float', 'bool', 'null', 'map', 'seq'].map((name) => TAG + name),
);

/** The library's words, unless they may quote the text: a secret can stand anywhere in it. */
function yamlProblem(code: string, message: string): string {
  switch (code) {
    case 'TAB_AS_INDENT':
      return 'a tab cannot indent YAML: use spaces';
    case 'MISSING_CHAR':
      return /quote/.test(message)
        ? 'a quoted text has no closing quote'
        : 'a closing character or a colon is missing';
    case 'BLOCK_AS_IMPLICIT_KEY':
      return 'a "key: value" cannot stand here: quote the text, or indent differently';
    case 'MULTILINE_IMPLICIT_KEY':
      return 'a key must fit on one line: is a colon or an indentation missing?';
    case 'BAD_INDENT':
      return 'wrong indentation, or a closing character is missing';
    case 'BAD_ALIAS':
      return 'a text that begins with * must be quoted';
    default:
      return `not valid YAML (${code.toLowerCase().replaceAll('_', ' ')})`;
  }
}

/** A place in the tree: what a decoder complains with. */
export class Place {
  readonly source: Source;
  readonly path: string;
  /** The section around it, to point at when the thing itself is not there. */
  readonly section: Value;

  constructor(source: Source, path: string, section: Value) {
    this.source = source;
    this.path = path;
    this.section = section;
  }

  child(key: string, section: Value): Place {
    return new Place(this.source, this.path === '' ? key : `${this.path}.${key}`, section);
  }

  complain(at: Value | undefined, text: string): void {
    this.source.complain(at ?? this.section, this.path, text);
  }
}
