import { testDebian } from './debian.ts';

testDebian({
  debian: 'debian-13',
  settings: ['lmdb-lightning-stream=yes'],
  example: 'main.yaml',
  otherTemplate: true,
});
