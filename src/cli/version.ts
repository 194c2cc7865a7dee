import { programVersion } from '../version.ts';
import { type Io, print } from './io.ts';

/** `version` */
export async function version(io: Io, options: { readonly json?: true }): Promise<number> {
  const { loadNative } = await import('../native/index.ts');
  const native = loadNative();
  const facts = {
    ...programVersion(),
    node: process.versions.node,
    lmdb: native.lmdbVersion,
    addon: native.addonVersion,
  };
  const text = Object.entries(facts).map(([name, value]) =>
    name === 'version' ? value : `${name} ${value}`,
  );
  await print(io.stdout, options.json === true ? `${JSON.stringify(facts)}\n` : `${text.join('\n')}\n`);
  return 0;
}
