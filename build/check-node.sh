#!/bin/sh
# check-node.sh NODE: npm leaves an optional package out without an error; this turns it into one.
if "$1" --version >/dev/null 2>&1; then exit 0; fi
echo "npm did not install the Node.js that runs the program ($1)." >&2
echo 'Optional packages must not be omitted: see `npm config get omit`, then run make again.' >&2
exit 1
