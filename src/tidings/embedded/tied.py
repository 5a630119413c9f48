"""Becomes another program whose life is tied to a lifeline: `python -m tidings.embedded.tied END PROGRAM ARGUMENT …`.

A process of one thread, so that nothing has to run between a fork and an exec in one that has many.
"""

import os
import sys

from .locks import tie_to_lifeline

if __name__ == "__main__":
    tie_to_lifeline(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
