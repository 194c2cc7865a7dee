/** What stands where a secret was. */
const MASK = '***';

/** Shorter ones are masked only where they are a whole value: inside a text they would be everywhere, and so be told. */
const MIN_INSIDE_LENGTH = 4;

/** Names of fields whose values are never shown, compared without case, `_`, `-` and spaces. */
const SECRET_NAME =
  /secret|passw|passphrase|credential|authorization|token|sas$|accesskey|accountkey|privatekey|apikey|connectionstring|cookie/;

/** Forms of credentials that are known without knowing the value: `$1` is what stays. */
const SECRET_PATTERNS: readonly RegExp[] = [
  // user:password@ of an URL, also when the password holds an unescaped @
  /\b([a-z][a-z0-9+.-]*:\/\/)[^\s/?#"'<>]+(?=@)/gi,
  // parameters of signed URLs (AWS signature version 2 and 4, Azure SAS)
  /([?&](?:X-Amz-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|sig)=)[^&\s"'<>]+/gi,
  // Azure connection strings
  /\b((?:AccountKey|SharedAccessSignature|SharedAccessKey)=)[^;\s"'<>]+/gi,
  // HTTP authorization
  /\b(Authorization["']?\s*[:=]\s*["']?)[^"'\r\n]+/gi,
  /\b(Bearer\s+)[\w.~+/=-]{8,}/gi,
  /(-----BEGIN [A-Z ]*PRIVATE KEY-----)(?:(?!-----END)[\s\S])*/g,
];

/** Masks what must not be shown; one per program, shared by everything that shows something. */
export interface SecretMask {
  /** Secrets that are masked from now on wherever they occur; empty ones are ignored. */
  add(values: Iterable<string>): void;
  /** The text without secrets. */
  mask(text: string): string;
  /** True when a field of this name is never shown. */
  isSecretName(name: string): boolean;
}

export function createSecretMask(): SecretMask {
  const whole = new Set<string>();
  const inside = new Set<string>();
  let pattern: RegExp | undefined;

  function addInside(value: string): void {
    if (value.length >= MIN_INSIDE_LENGTH) inside.add(value);
  }

  return {
    add(values) {
      for (const value of values) {
        const trimmed = value.trim();
        if (trimmed === '') continue;
        whole.add(value);
        whole.add(trimmed);
        if (trimmed.length < MIN_INSIDE_LENGTH) continue;
        // As it looks after the ways a value gets into a text: URL, JSON, basic authentication.
        addInside(trimmed);
        addInside(encodeURIComponent(trimmed.toWellFormed()));
        addInside(encodeURI(trimmed.toWellFormed()));
        addInside(JSON.stringify(trimmed).slice(1, -1));
        addInside(Buffer.from(trimmed).toString('base64'));
        const lines = trimmed.split('\n').map((line) => line.trim());
        // A key file, also when its lines were joined: a part is as bad as all of it; its frame tells nothing.
        if (lines.length > 1) for (const line of lines) if (!line.startsWith('-----')) addInside(line);
      }
      // The longest first: one secret may be the beginning of another.
      const alternatives = [...inside]
        .sort((a, b) => b.length - a.length)
        .map((text) => text.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&'));
      pattern = alternatives.length === 0 ? undefined : new RegExp(alternatives.join('|'), 'g');
    },
    mask(text) {
      if (whole.has(text)) return MASK;
      let masked = pattern === undefined ? text : text.replace(pattern, MASK);
      for (const known of SECRET_PATTERNS) masked = masked.replace(known, `$1${MASK}`);
      return masked;
    },
    isSecretName: (name) => SECRET_NAME.test(name.toLowerCase().replace(/[_\s-]/g, '')),
  };
}
