"""Meta-trains an optimizer, or searches the teachers' learning rates; see --help."""

import os
import sys

if __name__ == "__main__":  # the processes of --jobs import this file
    # TensorFlow's libraries greet on stderr while they are imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    stderr = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        from l2o.commands.train import main
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        os.dup2(stderr, 2)
    main()
