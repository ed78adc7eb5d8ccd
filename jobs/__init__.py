"""Scripts for `ray job submit`: one per stage, each the same as the `instruct-ray` command, and the demo."""
