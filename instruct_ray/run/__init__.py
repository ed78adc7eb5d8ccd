"""One run: its folder, frozen config, lock and events."""
