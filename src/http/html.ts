import { escapeControls } from '../observability/log-format.ts';

/** A piece of a page that is safe to put into one. */
export interface Html {
  readonly html: string;
}

type Value = string | number | bigint | Html | readonly Html[] | undefined;

/** Template tag: every value that is not itself {@link Html} becomes text; `undefined` becomes nothing. */
export type HtmlTag = (strings: TemplateStringsArray, ...values: readonly Value[]) => Html;

const ENTITIES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};

/** `mask` sees every text before it is escaped. */
export function createHtmlTag(mask: (text: string) => string): HtmlTag {
  function render(value: Value): string {
    if (value === undefined) return '';
    if (typeof value === 'object') return 'html' in value ? value.html : value.map(render).join('');
    const text = typeof value === 'string' ? escapeControls(mask(value)) : value.toString();
    return text.replace(/[&<>"']/g, (character) => ENTITIES[character] ?? '');
  }
  return (strings, ...values) => ({ html: String.raw({ raw: strings }, ...values.map(render)) });
}
