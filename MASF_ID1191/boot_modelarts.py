"""Start file of a ModelArts job: copies the data in, runs main.py, copies the results out.

--data_url and --train_url as ModelArts passes them; every other flag goes to main.py (see
main.py --help). The data folder holds kfold/<domain>/<class>/<image>, filelist/ with its lists, and
bvlc_alexnet.npy if training shall start from it.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import sys

import main as training
import npu_session


def parse_args(argv=None):
    """(flags of this program, list of the flags for main.py)."""
    parser = npu_session.argument_parser(__doc__)
    parser.add_argument("--data_url", help="data: obs://, s3:// or a local folder; default: what "
                                           "main.py takes without")
    parser.add_argument("--train_url", help="results, obs://, s3:// or a local folder; default: as "
                                            "main.py")
    parser.add_argument("--num_gpus", help="passed by old ModelArts images; not used")
    return parser.parse_known_args(argv)


def main(argv=None):
    """Runs main.py between the two copies; returns its exit code."""
    args, further = parse_args(argv)
    with npu_session.staged(args.data_url, args.train_url) as (data, output):
        folders = [f"--{flag}={folder}" for flag, folder in (("data_url", data),
                                                             ("train_url", output)) if folder]
        return training.main(folders + further)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
