"""Programs that use a running endpoint through LangChain: `python -m jobs.examples.NAME --model MODEL`."""
