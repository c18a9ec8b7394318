"""`python -m diffir_sr ...` is `diffir ...`; `python -m diffir_sr basicsr ...` is `basicsr ...`."""

import sys

from diffir_sr.cli import basicsr_main, main

if __name__ == "__main__":
    if sys.argv[1:2] == ["basicsr"]:
        sys.exit(basicsr_main(sys.argv[2:]))
    sys.exit(main())
