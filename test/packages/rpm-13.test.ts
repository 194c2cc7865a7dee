import { testRpm } from './rpm.ts';
// rpm 4.20, which makes users by itself.

testRpm('debian-13');
