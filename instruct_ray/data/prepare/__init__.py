"""The prepare stage: two Ray Data passes from source files to packs."""
