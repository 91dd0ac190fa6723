from l2o.commands.train import main

if __name__ == "__main__":  # the processes of --jobs import this file
    main()
