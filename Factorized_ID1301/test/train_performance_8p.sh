#!/bin/bash
# Short training in eight processes, one per device, for its speed. Flags: --help.
exec bash "$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/train_1p.sh" "$(basename -- "$0")" "$@"
