"""python -m emharness.steering.verify <folder or hub id> [layer] [dtype]"""

import sys

from emharness.steering.verify.checks import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
