"""The target of torchrun: all stages of the training pipeline, with the flags of ``embervlm train``."""

import sys

from embervlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
