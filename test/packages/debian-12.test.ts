import { testDebian } from './debian.ts';

// PowerDNS 4.7: in shadow mode.
testDebian({
  debian: 'debian-12',
  settings: ['lmdb-random-ids=yes'],
  example: 'powerdns-4.7.yaml',
  otherTemplate: false,
});
