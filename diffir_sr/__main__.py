"""`python -m diffir_sr ...` is `diffir ...`; `python -m diffir_sr basicsr ...` is `basicsr ...`."""

import sys

from diffir_sr.cli import basicsr_main, main
from diffir_sr.files.processes import follow_leader

if __name__ == "__main__":
    follow_leader()
    if sys.argv[1:2] == ["basicsr"]:
        sys.exit(basicsr_main(sys.argv[2:]))
    sys.exit(main())
