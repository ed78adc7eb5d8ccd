"""What each stage's command prints around its one library call."""
