"""A version -> an OpenAI-compatible endpoint on Ray Serve."""
