import { testRpm } from './rpm.ts';
// rpm 4.18; RHEL 9 has 4.16.

testRpm('debian-12');
