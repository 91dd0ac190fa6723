"""Compares optimizers on the paper's problems, or reports results; see --help."""

import os
import sys

if __name__ == "__main__":
    # TensorFlow's libraries greet on stderr while they are imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    stderr = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        from l2o.commands.evaluate import main
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        os.dup2(stderr, 2)
    main()
