/** What stands in place of a secret. */
export const MASK = '***';

/** Whether a key's value is a secret, going by its name; names of files with secrets are none. */
export function isSecretKey(name: string): boolean {
  return (
    /(^|[_-])(key|secret|password|passphrase|pass|token|credentials?|sas|connection_string)$/i.test(name) &&
    !/^use_/i.test(name)
  );
}

/** Hides `user:password@` and signatures in a URL. */
export function maskUrl(text: string): string {
  return text
    .replace(/\/\/\S*@/g, `//${MASK}@`)
    .replace(/([?&][^=&#\s]*(?:sig|signature|token|key|secret)=)[^&#\s]+/gi, `$1${MASK}`);
}
