import { programVersion } from '../version.ts';
import { errorMessage } from '../errors.ts';
import { type Io, print } from './io.ts';

/** `version` */
export async function version(io: Io, options: { readonly json?: true }): Promise<number> {
  const facts = {
    ...programVersion(),
    node: process.versions.node,
    ...(await nativeVersions()),
  };
  const text = Object.entries(facts).map(([name, value]) =>
    name === 'version' ? value : `${name} ${value}`,
  );
  await print(io.stdout, options.json === true ? `${JSON.stringify(facts)}\n` : `${text.join('\n')}\n`);
  return 0;
}

/** Whoever reports that the addon cannot be loaded must be able to say which version it is. */
async function nativeVersions(): Promise<Record<string, string>> {
  try {
    const { loadNative } = await import('../native/index.ts');
    const native = loadNative();
    return { lmdb: native.lmdbVersion, addon: native.addonVersion };
  } catch (error) {
    return { addon: `cannot be loaded (${errorMessage(error)})` };
  }
}
