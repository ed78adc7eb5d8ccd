"""`python -m instruct_ray STAGE` is `instruct-ray STAGE`, also where the command is not on the path."""

from instruct_ray.cli.main import main

if __name__ == "__main__":
    main()
