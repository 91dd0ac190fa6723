import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow speaks as soon as it is loaded

from l2o.commands.evaluate import main  # noqa: E402

if __name__ == "__main__":
    main()
