"""One program per arrow of the way: prepare, tune, evaluate, register, serve; demo runs them all."""
